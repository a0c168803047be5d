"""The stages of a distillation, the losses that they minimise, and the texts and models that they make up."""
