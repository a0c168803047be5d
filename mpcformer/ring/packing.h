/* How ring elements lie on the wire, as mpcformer/ring/packing.py describes it: planes of 32, 16, 8 and 4 bits.

   For those of these files that pack or unpack. `bits` is constant wherever these functions are called, and the elements
   from `from` to `to` may be any part of all `n`. */

#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_AVX2 __attribute__((target("avx2")))
#else
#define FOR_AVX2
#endif
#define INLINE static inline __attribute__((always_inline))

/* The planes of a ring, in the order in which they lie. */
#define HAS_32(bits) ((bits) >= 32)
#define HAS_16(bits) ((bits) % 32 >= 16)
#define HAS_8(bits) ((bits) % 16 >= 8)
#define HAS_4(bits) ((bits) % 8 >= 4)

typedef struct {
  const u8 *of_32, *of_16, *of_8, *of_4;
  i64 half;
} Planes;

INLINE Planes planes_of(const u8 *bytes, i64 n, int bits) {
  Planes p;
  p.of_32 = bytes;
  p.of_16 = p.of_32 + (HAS_32(bits) ? 4 * n : 0);
  p.of_8 = p.of_16 + (HAS_16(bits) ? 2 * n : 0);
  p.of_4 = p.of_8 + (HAS_8(bits) ? n : 0);
  p.half = (n + 1) / 2; /* the elements whose four bits are the low ones of a byte */
  return p;
}

/* Elements may lie at any address. */
INLINE u32 at_32(const u8 *plane, i64 i) {
  u32 x;
  memcpy(&x, plane + 4 * i, sizeof x);
  return x;
}

INLINE u16 at_16(const u8 *plane, i64 i) {
  u16 x;
  memcpy(&x, plane + 2 * i, sizeof x);
  return x;
}

/* Element i without its four highest bits, if they lie in a plane of their own. */
INLINE u64 element(const Planes *p, i64 i, int bits) {
  u64 x = 0;
  if (HAS_32(bits)) x = at_32(p->of_32, i);
  if (HAS_16(bits)) x |= (u64)at_16(p->of_16, i) << bits / 32 * 32;
  if (HAS_8(bits)) x |= (u64)p->of_8[i] << bits / 16 * 16;
  return x;
}

/* Let an expression in i and x see each element from `from` to `to`, whole. */
#define EACH_ELEMENT(p, from, to, bits, USE)                                                                           \
  do {                                                                                                                 \
    const i64 low_ = HAS_4(bits) ? (p).half : (to), end_ = low_ < (to) ? low_ : (to);                                  \
    for (i64 i = (from); i < end_; i++) {                                                                              \
      u64 x = element(&(p), i, bits);                                                                                  \
      if (HAS_4(bits)) x |= (u64)((p).of_4[i] & 15) << bits / 8 * 8;                                                   \
      USE;                                                                                                             \
    }                                                                                                                  \
    for (i64 i = low_ > (from) ? low_ : (from); i < (to); i++) {                                                       \
      u64 x = element(&(p), i, bits) | (u64)((p).of_4[i - low_] >> 4) << bits / 8 * 8;                                 \
      USE;                                                                                                             \
    }                                                                                                                  \
  } while (0)

/* Read elements from `from` to `to` of all n into out[0] and so on. Returns 0, or 1 if elements of so many bits do not
   pack. */
int mpcformer_packing_read(const u8 *bytes, i64 n, int bits, i64 from, i64 to, i64 *out);

/* Write elements from `from` to `to`, of which x[0] is the first. The first half of all must be written before. */
INLINE void write_elements(const Planes *p, const i64 *x, i64 from, i64 to, int bits) {
  u8 *of_32 = (u8 *)p->of_32 + 4 * from, *of_16 = (u8 *)p->of_16 + 2 * from, *of_8 = (u8 *)p->of_8 + from;
  u8 *of_4 = (u8 *)p->of_4;
  for (i64 i = 0; i < to - from; i++) {
    u32 low = (u32)x[i];
    u16 middle = (u16)((u64)x[i] >> bits / 32 * 32);
    if (HAS_32(bits)) memcpy(of_32 + 4 * i, &low, sizeof low);
    if (HAS_16(bits)) memcpy(of_16 + 2 * i, &middle, sizeof middle);
    if (HAS_8(bits)) of_8[i] = (u8)((u64)x[i] >> bits / 16 * 16);
  }
  if (HAS_4(bits)) {
    const int shift = bits / 8 * 8;
    const i64 end = p->half < to ? p->half : to, start = p->half > from ? p->half : from;
    for (i64 i = from; i < end; i++) of_4[i] = (u8)((u64)x[i - from] >> shift & 15);
    for (i64 i = start; i < to; i++) of_4[i - p->half] |= (u8)(((u64)x[i - from] >> shift & 15) << 4);
  }
}

#define EACH_WIDTH(X)                                                                                                  \
  X(4) X(8) X(12) X(16) X(20) X(24) X(28) X(32) X(36) X(40) X(44) X(48) X(52) X(56) X(60)
