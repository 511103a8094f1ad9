"""What sharing out bits under a budget is made of: options, their damage, times, and the solver."""
