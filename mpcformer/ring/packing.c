/* Ring elements on the wire, as mpcformer/ring/packing.py describes them.

   mpcformer/ring/packing.py loads these functions from the same compiled file as those of kernels.c. */

#include "packing.h"

/* out = the elements, or their sum with those of `added` modulo 2^bits. `bits` is constant where this is called. */
INLINE void unpacked(const u8 *bytes, i64 n, int bits, const i64 *added, i64 *out) {
  const Planes p = planes_of(bytes, n, bits);
  const u64 mask = ((u64)1 << bits) - 1;
  EACH_ELEMENT(p, 0, n, bits, out[i] = (i64)(added ? (x + (u64)added[i]) & mask : x));
}

INLINE void packed(const i64 *x, i64 n, int bits, u8 *bytes) {
  const Planes p = planes_of(bytes, n, bits);
  write_elements(&p, x, 0, n, bits);
}

INLINE void read_part(const u8 *bytes, i64 n, int bits, i64 from, i64 to, i64 *out) {
  const Planes p = planes_of(bytes, n, bits);
  EACH_ELEMENT(p, from, to, bits, out[i - from] = (i64)x);
}

FOR_AVX2 int mpcformer_packing_read(const u8 *bytes, i64 n, int bits, i64 from, i64 to, i64 *out) {
  switch (bits) {
#define READ(width)                                                                                                    \
  case width:                                                                                                          \
    read_part(bytes, n, width, from, to, out);                                                                         \
    return 0;
    EACH_WIDTH(READ)
  }
  return 1;
}

/* Pack the low bits of n elements. Returns 0, or 1 if elements of so many bits do not pack. */
FOR_AVX2 int mpcformer_packing_pack(const i64 *x, i64 n, int bits, u8 *bytes) {
  switch (bits) {
#define PACK(width)                                                                                                    \
  case width:                                                                                                          \
    packed(x, n, width, bytes);                                                                                        \
    return 0;
    EACH_WIDTH(PACK)
  }
  return 1;
}

/* Unpack n elements; if `added` is given, add its elements, modulo 2^bits. Returns 0, or 1 as above. */
FOR_AVX2 int mpcformer_packing_unpack(const u8 *bytes, i64 n, int bits, const i64 *added, i64 *out) {
  switch (bits) {
#define UNPACK(width)                                                                                                  \
  case width:                                                                                                          \
    if (added)                                                                                                         \
      unpacked(bytes, n, width, added, out);                                                                           \
    else                                                                                                               \
      unpacked(bytes, n, width, 0, out);                                                                               \
    return 0;
    EACH_WIDTH(UNPACK)
  }
  return 1;
}
