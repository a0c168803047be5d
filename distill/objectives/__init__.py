"""The stages of a distillation and what each trains the student to match."""
