"""The public numbers of a private model, which both owners derive from its description and its ranges."""
