"""The default engine `lift`: protocols made for a BERT whose weights one owner knows."""
