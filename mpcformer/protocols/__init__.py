"""The protocols of the default engine, one file each: functions of shares, a correlation and a channel.

What the dealer makes for a protocol is in the module of the same name in `mpcformer.correlations`; `guard` uses the
generic kinds of `mpcformer.correlations.beaver`. Each module has a `cost` function, which states rounds and bytes for
given shapes; see `mpcformer.protocols.cost`.

A share of Z_2^k is an int64 whose bits from k up mean nothing (see `mpcformer.ring.packing`). A "scale" is the number
of fraction bits of a fixed-point number.
"""
