/* Point functions, as mpcformer/correlations/keys/point_function.py describes them: their keys, and the keys' trees.

   mpcformer/ring/points.py loads these functions from the same compiled file as those of kernels.c. */

#include <stdint.h>

typedef int64_t i64;
typedef uint64_t u64;

#if defined(__x86_64__) && defined(__GNUC__)
#include "aes.h"

#define N_HASHES 4
/* So many blocks are hashed side by side, because a processor begins a round of AES long before the last one ends. */
#define LANES 8

typedef struct {
  __m128i key[ROUNDS + 1];
} RoundKeys;

int mpcformer_points_has_aes(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("aes");
}

/* out[i] = AES(in[i]) xor in[i], for LANES blocks; all of them are read before one is written. */
FOR_AES static inline __attribute__((always_inline)) void hash(const RoundKeys *keys, const __m128i *in, __m128i *out) {
  __m128i x[LANES], from[LANES];
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i++) x[i] = _mm_xor_si128(from[i] = in[i], keys->key[0]);
#pragma GCC unroll 9
  for (int r = 1; r < ROUNDS; r++) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++) x[i] = _mm_aesenc_si128(x[i], keys->key[r]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < LANES; i++) out[i] = _mm_xor_si128(_mm_aesenclast_si128(x[i], keys->key[ROUNDS]), from[i]);
}

/* Expand the keys of `rows` point functions of 2^n places for the owner `rank`.

   hash_keys: N_HASHES keys of 16 bytes. roots: (rows, 2). levels: (rows, n, 2). leaves: (rows, numbers), numbers <= 4.
   nodes, bits: room for 2^n + LANES blocks and bytes. out: (numbers, rows, 2^n). */
FOR_AES void mpcformer_points_expand(const void *hash_keys, i64 rows, i64 n, i64 numbers, i64 rank, const i64 *roots,
                                      const i64 *levels, const i64 *leaves, void *room, uint8_t *bits, i64 *out) {
  RoundKeys keys[N_HASHES];
  for (int i = 0; i < N_HASHES; i++) set_key(keys[i].key, (const char *)hash_keys + 16 * i);
  __m128i *nodes = room, left[LANES] = {0}, right[LANES] = {0};
  const __m128i lowest = _mm_set_epi64x(0, 3);
  i64 places = (i64)1 << n;
  for (i64 row = 0; row < rows; row++) {
    nodes[0] = _mm_andnot_si128(lowest, _mm_loadu_si128((const __m128i *)(roots + 2 * row)));
    bits[0] = (uint8_t)rank;
    for (i64 level = 0; level < n; level++) {
      const i64 *correction = levels + 2 * (row * n + level);
      __m128i block = _mm_andnot_si128(lowest, _mm_loadu_si128((const __m128i *)correction));
      uint8_t to_left = correction[0] & 1, to_right = correction[0] >> 1 & 1;
      i64 size = (i64)1 << level;
      /* From the end, because the children take the place of later nodes. */
      for (i64 first = (size - 1) / LANES * LANES; first >= 0; first -= LANES) {
        i64 count = size - first < LANES ? size - first : LANES;
        uint8_t own[LANES];
        for (i64 i = 0; i < LANES; i++) own[i] = bits[first + (i < count ? i : 0)];
        hash(keys, nodes + first, left);
        hash(keys + 1, nodes + first, right);
        for (i64 i = 0; i < count; i++) {
          __m128i mask = _mm_set1_epi64x(-(i64)own[i]);
          i64 to = 2 * (first + i);
          bits[to] = (uint8_t)((_mm_cvtsi128_si64(left[i]) & 1) ^ (to_left & own[i]));
          bits[to + 1] = (uint8_t)((_mm_cvtsi128_si64(right[i]) & 1) ^ (to_right & own[i]));
          nodes[to] = _mm_xor_si128(_mm_andnot_si128(lowest, left[i]), _mm_and_si128(block, mask));
          nodes[to + 1] = _mm_xor_si128(_mm_andnot_si128(lowest, right[i]), _mm_and_si128(block, mask));
        }
      }
    }
    for (i64 first = 0; first < places; first += LANES) {
      i64 count = places - first < LANES ? places - first : LANES;
      hash(keys + 2, nodes + first, left);
      if (numbers > 2) hash(keys + 3, nodes + first, right);
      for (i64 k = 0; k < numbers; k++) {
        i64 leaf = leaves[row * numbers + k], *to = out + (k * rows + row) * places + first;
        for (i64 i = 0; i < count; i++) {
          i64 words[4];
          _mm_storeu_si128((__m128i *)words, left[i]);
          _mm_storeu_si128((__m128i *)(words + 2), right[i]);
          u64 value = (u64)words[k] + (u64)leaf * bits[first + i];
          to[i] = (i64)(rank ? -value : value);
        }
      }
    }
  }
}

/* Make the corrections of `rows` point functions of 2^n places, as the dealer does.

   hash_keys: 2 + MAX_PAYLOAD / 2 keys of 16 bytes. roots: (2, rows, 2), of both owners. places: (rows,). payload: (rows,
   numbers), numbers <= MAX_PAYLOAD. levels: (rows, n, 2). leaves: (rows, numbers). */
#define MAX_PAYLOAD 6
#define N_ROWS (LANES / 2)
FOR_AES void mpcformer_points_correct(const void *hash_keys, i64 rows, i64 n, i64 numbers, const i64 *roots,
                                           const i64 *places, const i64 *payload, i64 *levels, i64 *leaves) {
  RoundKeys keys[2 + MAX_PAYLOAD / 2];
  for (int i = 0; i < 2 + MAX_PAYLOAD / 2; i++) set_key(keys[i].key, (const char *)hash_keys + 16 * i);
  const __m128i lowest = _mm_set_epi64x(0, 3);
  /* The first half of the nodes are those of the first owner, on the ways to the places of some rows. */
  __m128i nodes[LANES], left[LANES], right[LANES];
  u64 bits[LANES];
  for (i64 first = 0; first < rows; first += N_ROWS) {
    i64 count = rows - first < N_ROWS ? rows - first : N_ROWS;
    for (i64 i = 0; i < LANES; i++) {
      i64 owner = i / N_ROWS, row = first + (i % N_ROWS < count ? i % N_ROWS : 0);
      nodes[i] = _mm_andnot_si128(lowest, _mm_loadu_si128((const __m128i *)(roots + 2 * (owner * rows + row))));
      bits[i] = (u64)owner;
    }
    for (i64 level = 0; level < n; level++) {
      hash(keys, nodes, left);
      hash(keys + 1, nodes, right);
      for (i64 i = 0; i < count; i++) {
        u64 turn = (u64)places[first + i] >> (n - 1 - level) & 1; /* 1 where the way goes right */
        const __m128i *kept = turn ? right : left, *lost = turn ? left : right;
        __m128i block = _mm_andnot_si128(lowest, _mm_xor_si128(lost[i], lost[i + N_ROWS]));
        u64 to_left = (u64)_mm_cvtsi128_si64(_mm_xor_si128(left[i], left[i + N_ROWS])) & 1;
        u64 to_right = (u64)_mm_cvtsi128_si64(_mm_xor_si128(right[i], right[i + N_ROWS])) & 1;
        to_left ^= turn ^ 1, to_right ^= turn;
        u64 corrected = turn ? to_right : to_left;
        _mm_storeu_si128((__m128i *)(levels + 2 * ((first + i) * n + level)),
                         _mm_or_si128(block, _mm_set_epi64x(0, (i64)(to_left | to_right << 1))));
        for (i64 at = i; at < LANES; at += N_ROWS) {
          __m128i mask = _mm_set1_epi64x(-(i64)bits[at]);
          bits[at] = ((u64)_mm_cvtsi128_si64(kept[at]) & 1) ^ (corrected & bits[at]);
          nodes[at] = _mm_andnot_si128(lowest, _mm_xor_si128(kept[at], _mm_and_si128(block, mask)));
        }
      }
    }
    for (i64 k = 0; k < numbers; k += 2) {
      hash(keys + 2 + k / 2, nodes, left);
      for (i64 i = 0; i < count; i++) {
        u64 ours[2], theirs[2];
        _mm_storeu_si128((__m128i *)ours, left[i]);
        _mm_storeu_si128((__m128i *)theirs, left[i + N_ROWS]);
        for (i64 j = 0; j < 2 && k + j < numbers; j++) {
          i64 at = (first + i) * numbers + k + j;
          u64 difference = (u64)payload[at] - ours[j] + theirs[j];
          leaves[at] = (i64)(bits[i + N_ROWS] ? -difference : difference);
        }
      }
    }
  }
}

#else

int mpcformer_points_has_aes(void) { return 0; }

void mpcformer_points_expand(const void *hash_keys, i64 rows, i64 n, i64 numbers, i64 rank, const i64 *roots,
                             const i64 *levels, const i64 *leaves, void *room, uint8_t *bits, i64 *out) {
  (void)hash_keys, (void)rows, (void)n, (void)numbers, (void)rank, (void)roots, (void)levels, (void)leaves, (void)room;
  (void)bits, (void)out;
}

void mpcformer_points_correct(const void *hash_keys, i64 rows, i64 n, i64 numbers, const i64 *roots, const i64 *places,
                              const i64 *payload, i64 *levels, i64 *leaves) {
  (void)hash_keys, (void)rows, (void)n, (void)numbers, (void)roots, (void)places, (void)payload, (void)levels;
  (void)leaves;
}

#endif
