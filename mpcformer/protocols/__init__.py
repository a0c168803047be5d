"""The protocols of the `mpcformer` suite, one file each: functions of shares, a correlation and a channel.

A share of Z_2^k is an int64 whose bits from k up mean nothing (`mpcformer.ring.packing`). "Scale" counts fraction bits.
"""
