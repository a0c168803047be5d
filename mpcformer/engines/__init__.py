"""The private BERT, put together from shared-tensor operations, behind one engine interface."""
