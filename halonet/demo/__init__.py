"""A page to try a model, on this machine or as a Space of the Hugging Face Hub."""
