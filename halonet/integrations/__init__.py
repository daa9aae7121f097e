"""timm and the Hugging Face Hub: their models with our operator, our models in their terms."""
