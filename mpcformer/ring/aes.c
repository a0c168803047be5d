/* AES-128 in counter mode over zeros: the blocks are the big-endian numbers 0, 1, 2, ..., encrypted.

   mpcformer/ring/aes.py loads this function from the same compiled file as those of kernels.c. */

#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef uint64_t u64;
typedef uint8_t u8;

#include "aes.h"

#ifdef HAS_AES

#define UNROLLED _Pragma("GCC unroll 16")
#define BLOCK 16
/* So many blocks are encrypted side by side, because a processor begins a round long before the last one ends. */
#define LANES 16

int mpcformer_aes_level(void) { return aes_level(); }

/* Encrypt `groups` times LANES blocks, of which the first has this number. */
FOR_AES static void blocks_aes(const __m128i *keys, u64 first, i64 groups, u8 *out) {
  for (i64 g = 0; g < groups; g++, first += LANES, out += LANES * BLOCK)
    for (int half = 0; half < LANES; half += LANES / 2) {
      __m128i x[LANES / 2];
      UNROLLED for (int i = 0; i < LANES / 2; i++)
        x[i] = _mm_xor_si128(_mm_set_epi64x((i64)__builtin_bswap64(first + half + i), 0), keys[0]);
      UNROLLED for (int r = 1; r < ROUNDS; r++) {
        UNROLLED for (int i = 0; i < LANES / 2; i++) x[i] = _mm_aesenc_si128(x[i], keys[r]);
      }
      UNROLLED for (int i = 0; i < LANES / 2; i++)
        _mm_storeu_si128((__m128i *)out + half + i, _mm_aesenclast_si128(x[i], keys[ROUNDS]));
    }
}

FOR_VAES static void blocks_vaes(const __m128i *keys, u64 first, i64 groups, u8 *out) {
  __m512i k[ROUNDS + 1], number = _mm512_set_epi64(first + 3, 0, first + 2, 0, first + 1, 0, first, 0);
  /* The bytes of each word, from the last to the first. */
  const __m512i turn = _mm512_broadcast_i32x4(_mm_set_epi64x(0x08090A0B0C0D0E0F, 0x0001020304050607));
  const __m512i four = _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0);
  UNROLLED for (int r = 0; r <= ROUNDS; r++) k[r] = _mm512_broadcast_i32x4(keys[r]);
  for (i64 g = 0; g < groups; g++, out += LANES * BLOCK) {
    __m512i x[LANES / 4];
    UNROLLED for (int i = 0; i < LANES / 4; i++) {
      x[i] = _mm512_xor_si512(_mm512_shuffle_epi8(number, turn), k[0]);
      number = _mm512_add_epi64(number, four);
    }
    UNROLLED for (int r = 1; r < ROUNDS; r++) {
      UNROLLED for (int i = 0; i < LANES / 4; i++) x[i] = _mm512_aesenc_epi128(x[i], k[r]);
    }
    UNROLLED for (int i = 0; i < LANES / 4; i++)
      _mm512_storeu_si512((__m512i *)out + i, _mm512_aesenclast_epi128(x[i], k[ROUNDS]));
  }
}

/* Write n bytes of the stream of a key, from the byte `at` on. Returns 0, or 1 if the level is none. */
FOR_AES int mpcformer_aes_stream(int level, const u8 *key, u64 at, u8 *out, u64 n) {
  void (*blocks)(const __m128i *, u64, i64, u8 *) = level == VAES ? blocks_vaes : level == AES ? blocks_aes : 0;
  __m128i keys[ROUNDS + 1];
  u8 some[LANES * BLOCK];
  if (!blocks) return 1;
  set_key(keys, key);
  while (n) {
    u64 skipped = at % BLOCK, groups = skipped ? 0 : n / sizeof some, done = groups * sizeof some;
    if (groups) {
      blocks(keys, at / BLOCK, (i64)groups, out);
    } else {
      done = sizeof some - skipped < n ? sizeof some - skipped : n;
      blocks(keys, at / BLOCK, 1, some);
      memcpy(out, some + skipped, done);
    }
    at += done, out += done, n -= done;
  }
  return 0;
}

#else

int mpcformer_aes_level(void) { return NONE; }

int mpcformer_aes_stream(int level, const u8 *key, u64 at, u8 *out, u64 n) {
  (void)level, (void)key, (void)at, (void)out, (void)n;
  return 1;
}

#endif
