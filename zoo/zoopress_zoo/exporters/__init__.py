"""What writes models of transformers in the forms that language models are shared in."""
