"""From a task to an episode: prompts, games, players and sampling engines."""
