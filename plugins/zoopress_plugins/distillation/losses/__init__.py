"""What a student can lack of a teacher's answers and hidden states, a loss a file."""
