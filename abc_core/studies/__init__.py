"""Arms, seeds, claims and the scoreboard."""
