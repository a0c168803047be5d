"""The reference engine `crypten`: MPCFormer's computation on CrypTen's generic protocols."""
