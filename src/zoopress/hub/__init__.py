"""The Hugging Face Hub: fetch models, verify them, publish compressed ones."""
