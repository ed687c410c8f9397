"""The environment of the quickstart: a cave of 4 by 4 squares, and nobody says which letter is good.

agentopcd envs try examples/cave.py:Cave
"""

from agentopcd.envs import TextEnv, last_bracket

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
HOW = "Answer with one move in brackets: [up], [down], [left] or [right]."
WALL = "You attempted an invalid move. Reason: You tried to move {} but hit a wall! Please resubmit a valid move."
LOST = "You fell into a hole! Game over. You completed 0% of the journey to the goal."
WON = "Congratulations! You reached the goal!"


class Cave(TextEnv):
    """P is the player. T is the treasure and X is a pit, which only play can show."""

    max_steps = 10

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)  # chance comes from self.np_random and from nowhere else
        way = None
        while way is None:  # draw again until the treasure can be reached
            drawn = self.np_random.permutation(16)[:6]
            self.here, self.treasure, *self.pits = [divmod(int(n), 4) for n in drawn]
            way = self.solution()
        rules = "You control P on a grid. Reach the goal in as few moves as you can, one move per reply."
        return self.first(rules=rules, state=self.board(), actions=HOW)

    def step(self, action):
        move = last_bracket(action, MOVES)
        there = self.neighbour(self.here, move) if move else None
        if there is None:
            return self.turn(feedback=WALL.format(move or "nowhere"), state=self.board(), actions=HOW, invalid=True)
        self.here = there
        moved, board = f"You moved {move} to position {there}.", self.board()
        if there in self.pits:
            return self.turn(feedback=moved, state=board, outcome=LOST, success=False)
        if there == self.treasure:
            return self.turn(feedback=moved, state=board, outcome=WON, success=True)
        return self.turn(feedback=moved, state=board, actions=HOW)

    def neighbour(self, here, move):
        row, column = here[0] + MOVES[move][0], here[1] + MOVES[move][1]
        return (row, column) if 0 <= row < 4 and 0 <= column < 4 else None

    def solution(self):
        """Replies that win from here, or None. Optional: the checker plays them."""
        ways = {self.here: []}
        for here in (queue := [self.here]):
            if here == self.treasure:
                return ways[here]
            for move in MOVES:
                there = self.neighbour(here, move)
                if there and there not in ways and there not in self.pits:
                    ways[there] = [*ways[here], f"[{move}]"]
                    queue.append(there)
        return None

    def board(self):
        player = "P/T" if self.here == self.treasure else "P"
        signs = dict.fromkeys(self.pits, "X") | {self.treasure: "T", self.here: player}
        rows = ("|".join(f"{signs.get((r, c), ''):^5}" for c in range(4)) for r in range(4))
        line = "+-----" * 4 + "+"
        return f"Current Board:\n\n{line}\n" + "".join(f"|{row}|\n{line}\n" for row in rows).rstrip()
