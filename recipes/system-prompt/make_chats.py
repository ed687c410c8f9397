"""Write ``chats.jsonl``: conversations of riders with the help line of a bicycle workshop, without any system message.

    python recipes/system-prompt/make_chats.py > recipes/system-prompt/chats.jsonl

Every conversation opens on one of twelve matters, in one of several wordings and with one of many bicycles, and goes on
with a second question. The answers in the log are short notes of what a person at the desk said; no model is shown
them at the place where it answers, but what comes later in a conversation follows them.
"""

from __future__ import annotations

import json
import random

BICYCLES = (
    "an old steel road bike", "my daughter's first bicycle", "a folding bike", "a mountain bike with disc brakes",
    "my grandfather's tourer", "an electric city bike", "a tandem", "a cargo bike", "a second-hand gravel bike",
    "a child's balance bike", "a racing bike that I bought last week", "a bike with a hub gear", "a fixed-gear bike",
    "a long-tail bike", "my neighbour's city bike", "a bike with a wobbly back wheel",
)  # fmt: skip
OPENINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "flat": (
        ("I have a flat tyre on {bike}. Can you fix it?", "The front tyre of {bike} will not hold air. What can I do?",
         "I rode over glass with {bike} and now the tyre is flat."),
        "We mend that while you wait. Bring it in between nine and six.",
    ),
    "brakes": (
        ("The brakes of {bike} squeal. Is that dangerous?", "I think {bike} needs new brake pads.",
         "When I pull the brake of {bike}, hardly anything happens."),
        "That sounds like worn pads. We can fit new ones on the same day.",
    ),
    "service": (
        ("How often should I have {bike} serviced?", "I would like a service for {bike}, please.",
         "What do you do in a service? It is for {bike}."),
        "Once a year is a good rule. A basic service takes a day, a full one takes three.",
    ),
    "gears": (
        ("The gears of {bike} jump when I pedal hard.", "I cannot shift {bike} into the lowest gear any more.",
         "Why does the chain of {bike} keep falling off?"),
        "The cable or the hanger is out of line. We adjust that in a basic service.",
    ),
    "sell": (
        ("Would you take {bike} in part exchange?", "I want to sell {bike}. Do you buy bicycles?",
         "What would I get for {bike} if I buy a new one from you?"),
        "We take it in part exchange. Bring it in on any day but Saturday and we will look at it.",
    ),
    "wash": (
        ("What is the best way to clean {bike}?", "Can I wash {bike} with a pressure washer?",
         "There is rust on {bike}. How do I get it off?"),
        "Use warm water and a soft brush, and keep the spray away from the bearings.",
    ),
    "light": (
        ("Which lights do I need on {bike}?", "The back light of {bike} stopped working.",
         "I ride {bike} home in the dark. What should I look out for?"),
        "White in front and red behind. We can fit a set that runs on a dynamo.",
    ),
    "complaint": (
        ("I had {bike} with you last week and it is worse than before.",
         "Nobody rang me back about {bike}. I am quite annoyed.", "You scratched the frame of {bike}."),
        "I am sorry about that. Bring it in and we will look at it at no charge.",
    ),
    "size": (
        ("My knees hurt when I ride {bike}.", "How high should the saddle of {bike} be?", "Is {bike} too big for me?"),
        "Your leg should be nearly straight at the lowest point. We can set that up with you here.",
    ),
    "travel": (
        ("How do I pack {bike} for a flight?", "Can I take {bike} on the train?",
         "I want to ride {bike} to the sea. It is sixty miles. Any advice?"),
        "Take off the pedals, turn the bars, and let some air out of the tyres.",
    ),
    "theft": (
        ("Which lock should I buy for {bike}?", "Somebody tried to steal {bike}. The lock is bent.",
         "Where can I leave {bike} overnight in town?"),
        "Take a heavy lock and put it through the frame, not only through the wheel.",
    ),
    "winter": (
        ("What should I do with {bike} over the winter?", "The battery or the chain of {bike} does not like the cold.",
         "Are other tyres worth it for {bike} in the snow?"),
        "Keep it dry, oil the chain often, and lower the pressure a little.",
    ),
}  # fmt: skip
SECOND = (
    "What would that cost?", "When are you open?", "Could you send somebody to my house?", "How long does it take?",
    "Do I need an appointment?", "Can you post it to me?", "Could I rent a bicycle meanwhile?", "Where are you?",
    "Can I do that myself at home?", "And if that does not help?", "Could you do it on Sunday?",
    "Do you also repair scooters?", "Is there a warranty on that?", "Could I pay by card?", "Thank you. Anything else?",
    "My friend says that is nonsense. Is it?",
)  # fmt: skip
LAST = "That depends on the bicycle. Come by and we will have a look together."


def conversations(n: int = 600, seed: int = 0) -> list[dict[str, object]]:
    """``n`` different conversations, drawn without repeats of an opening question."""
    rng = random.Random(seed)
    openings = [(text.format(bike=bike), answer) for texts, answer in OPENINGS.values() for text in texts
                for bike in BICYCLES]  # fmt: skip
    rows = []
    for question, answer in rng.sample(openings, min(n, len(openings))):
        messages = [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer},
            {"role": "user", "content": rng.choice(SECOND)}, {"role": "assistant", "content": LAST},
        ]  # fmt: skip
        rows.append({"messages": messages})
    return rows


if __name__ == "__main__":
    for row in conversations():
        print(json.dumps(row))
