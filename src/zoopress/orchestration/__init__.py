"""Run a whole zoo: cells side by side, shared work once, and a leaderboard at the end."""
