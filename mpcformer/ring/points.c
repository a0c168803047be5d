/* Point functions, as mpcformer/correlations/keys/point_function.py describes them: their keys, and the keys' trees.

   mpcformer/ring/points.py loads these functions from the same compiled file as those of kernels.c. */

#include <stdint.h>

typedef int64_t i64;
typedef uint64_t u64;

#include "aes.h"

#ifdef HAS_AES
#define MAX_PAYLOAD 6
#define N_HASHES (2 + MAX_PAYLOAD / 2)
/* So many blocks are hashed side by side, because a processor begins a round of AES long before the last one ends. */
#define LANES 8

typedef struct {
  __m128i key[ROUNDS + 1];
} RoundKeys;

int mpcformer_points_level(void) { return aes_level(); }

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

/* What mpcformer_points_expand is told. */
typedef struct {
  i64 rows, n, numbers, rank;
  const i64 *roots, *levels, *leaves;
  void *nodes;
  uint8_t *bits;
  i64 *out;
} Expand;

FOR_AES static void expand_aes(const RoundKeys *keys, const Expand *a) {
  __m128i *nodes = a->nodes, found[MAX_PAYLOAD / 2][LANES] = {{{0}}};
  uint8_t *bits = a->bits;
  const __m128i lowest = _mm_set_epi64x(0, 3);
  i64 places = (i64)1 << a->n;
  for (i64 row = 0; row < a->rows; row++) {
    nodes[0] = _mm_andnot_si128(lowest, _mm_loadu_si128((const __m128i *)(a->roots + 2 * row)));
    bits[0] = (uint8_t)a->rank;
    for (i64 level = 0; level < a->n; level++) {
      const i64 *correction = a->levels + 2 * (row * a->n + level);
      __m128i block = _mm_andnot_si128(lowest, _mm_loadu_si128((const __m128i *)correction));
      uint8_t to_left = correction[0] & 1, to_right = correction[0] >> 1 & 1;
      __m128i *left = found[0], *right = found[1];
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
      for (i64 k = 0; k < a->numbers; k += 2) hash(keys + 2 + k / 2, nodes + first, found[k / 2]);
      for (i64 k = 0; k < a->numbers; k++) {
        i64 leaf = a->leaves[row * a->numbers + k], *to = a->out + (k * a->rows + row) * places + first;
        for (i64 i = 0; i < count; i++) {
          i64 words[2];
          _mm_storeu_si128((__m128i *)words, found[k / 2][i]);
          u64 value = (u64)words[k % 2] + (u64)leaf * bits[first + i];
          to[i] = (i64)(a->rank ? -value : value);
        }
      }
    }
  }
}

/* Four nodes lie in a register, and so many registers are hashed side by side. */
#define WIDE 4
#define WIDE_NODES (4 * WIDE)
/* So many rows are expanded together, so that the levels near the root fill the registers too. In deeper trees, which
   would leave the cache, a row is expanded by itself. */
#define ROWS_TOGETHER 16
#define DEEP 10

typedef struct {
  __m512i key[ROUNDS + 1];
} WideKeys;

/* out[i] = AES(in[i]) xor in[i], for WIDE registers. */
FOR_VAES static inline __attribute__((always_inline)) void hash_wide(const WideKeys *keys, const __m512i *in,
                                                                     __m512i *out) {
  __m512i x[WIDE];
#pragma GCC unroll 4
  for (int i = 0; i < WIDE; i++) x[i] = _mm512_xor_si512(in[i], keys->key[0]);
#pragma GCC unroll 9
  for (int r = 1; r < ROUNDS; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < WIDE; i++) x[i] = _mm512_aesenc_epi128(x[i], keys->key[r]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < WIDE; i++)
    out[i] = _mm512_xor_si512(_mm512_aesenclast_epi128(x[i], keys->key[ROUNDS]), in[i]);
}

/* Four blocks of corrections, for four nodes of a level from this one on: as many of each row as the level has. */
FOR_VAES static inline __m512i wide_correction(const Expand *a, i64 row, i64 level) {
  __m128i block[4];
  for (i64 i = 0; i < 4; i++) {
    i64 of = row + (i >> level);
    if (of >= a->rows) of = a->rows - 1;
    block[i] = _mm_loadu_si128((const __m128i *)(a->levels + 2 * (of * a->n + level)));
    if (level > 1) return _mm512_broadcast_i32x4(block[0]);
  }
  __m512i wide = _mm512_castsi128_si512(block[0]);
  wide = _mm512_inserti32x4(wide, block[1], 1);
  wide = _mm512_inserti32x4(wide, block[2], 2);
  return _mm512_inserti32x4(wide, block[3], 3);
}

/* As `expand_aes`, for trees of 3 levels or more. A node's own bit is the lowest one of its block. */
FOR_VAES static void expand_vaes(const RoundKeys *narrow, const Expand *a) {
  WideKeys keys[N_HASHES];
  for (int h = 0; h < N_HASHES; h++)
    for (int r = 0; r <= ROUNDS; r++) keys[h].key[r] = _mm512_broadcast_i32x4(narrow[h].key[r]);
  const __m512i one = _mm512_broadcast_i32x4(_mm_set_epi64x(0, 1)), two = _mm512_slli_epi64(one, 1);
  const __m512i lowest = _mm512_or_si512(one, two), zero = _mm512_setzero_si512();
  /* The children of the first two nodes of a register and of the last two; the even and the odd words of two. */
  const __m512i first_two = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i last_two = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  const __m512i even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0), odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
  __m128i *nodes = a->nodes;
  __m512i at[WIDE], own[WIDE], left[WIDE], right[WIDE];
  i64 places = (i64)1 << a->n, together = a->n > DEEP ? 1 : ROWS_TOGETHER;
  for (i64 row = 0; row < a->rows; row += together) {
    for (i64 i = 0; i < together; i++) {
      const i64 *root = a->roots + 2 * (row + i < a->rows ? row + i : a->rows - 1);
      nodes[i] = _mm_set_epi64x(root[1], (root[0] & ~(i64)3) | a->rank);
    }
    for (i64 level = 0; level < a->n; level++) {
      i64 size = together << level;
      /* From the end, because the children take the place of later nodes. */
      for (i64 first = (size - 1) / WIDE_NODES * WIDE_NODES; first >= 0; first -= WIDE_NODES) {
        for (int i = 0; i < WIDE; i++) {
          __m512i node = _mm512_loadu_si512(nodes + first + 4 * i);
          own[i] = _mm512_sub_epi64(zero, _mm512_shuffle_epi32(_mm512_and_si512(node, one), 0x44));
          at[i] = _mm512_andnot_si512(lowest, node);
        }
        hash_wide(keys, at, left);
        hash_wide(keys + 1, at, right);
        for (int i = 0; i < WIDE; i++) {
          __m512i correction = wide_correction(a, row + ((first + 4 * i) >> level), level);
          __m512i block = _mm512_andnot_si512(lowest, correction);
          __m512i to_left = _mm512_and_si512(correction, one);
          __m512i to_right = _mm512_and_si512(_mm512_srli_epi64(correction, 1), one);
          __m512i l = _mm512_xor_si512(_mm512_andnot_si512(two, left[i]),
                                       _mm512_and_si512(own[i], _mm512_or_si512(block, to_left)));
          __m512i r = _mm512_xor_si512(_mm512_andnot_si512(two, right[i]),
                                       _mm512_and_si512(own[i], _mm512_or_si512(block, to_right)));
          _mm512_storeu_si512(nodes + 2 * first + 8 * i, _mm512_permutex2var_epi64(l, first_two, r));
          _mm512_storeu_si512(nodes + 2 * first + 8 * i + 4, _mm512_permutex2var_epi64(l, last_two, r));
        }
      }
    }
    for (i64 first = 0; first < together << a->n; first += WIDE_NODES) {
      for (int i = 0; i < WIDE; i++) {
        own[i] = _mm512_loadu_si512(nodes + first + 4 * i);
        at[i] = _mm512_andnot_si512(lowest, own[i]);
      }
      for (i64 k = 0; k < a->numbers; k += 2) {
        hash_wide(keys + 2 + k / 2, at, left);
        for (int i = 0; i < WIDE; i += 2) {
          i64 of = row + ((first + 4 * i) >> a->n), place = (first + 4 * i) & (places - 1);
          if (of >= a->rows) continue;
          __m512i bits = _mm512_and_si512(_mm512_permutex2var_epi64(own[i], even, own[i + 1]), _mm512_set1_epi64(1));
          __m512i mask = _mm512_sub_epi64(zero, bits);
          for (i64 j = 0; j < 2 && k + j < a->numbers; j++) {
            __m512i words = _mm512_permutex2var_epi64(left[i], j ? odd : even, left[i + 1]);
            __m512i leaf = _mm512_set1_epi64(a->leaves[of * a->numbers + k + j]);
            __m512i value = _mm512_add_epi64(words, _mm512_and_si512(mask, leaf));
            if (a->rank) value = _mm512_sub_epi64(zero, value);
            _mm512_storeu_si512(a->out + ((k + j) * a->rows + of) * places + place, value);
          }
        }
      }
    }
  }
}

/* Expand the keys of `rows` point functions of 2^n places for the owner `rank`, by the instructions of `level`.

   hash_keys: N_HASHES keys of 16 bytes. roots: (rows, 2). levels: (rows, n, 2). leaves: (rows, numbers), numbers <=
   MAX_PAYLOAD. nodes: room for ROWS_TOGETHER 2^n + 2 WIDE_NODES blocks, in trees of more than DEEP levels for 2^n + 2
   WIDE_NODES. bits: room for 2^n + LANES bytes. out: (numbers, rows, 2^n). */
FOR_AES void mpcformer_points_expand(int level, const void *hash_keys, const Expand *a) {
  RoundKeys keys[N_HASHES];
  for (int i = 0; i < N_HASHES; i++) set_key(keys[i].key, (const char *)hash_keys + 16 * i);
  if (level == VAES && a->n >= 3) expand_vaes(keys, a);
  else expand_aes(keys, a);
}

/* Make the corrections of `rows` point functions of 2^n places, as the dealer does.

   hash_keys: N_HASHES keys of 16 bytes. roots: (2, rows, 2), of both owners. places: (rows,). payload: (rows,
   numbers), numbers <= MAX_PAYLOAD. levels: (rows, n, 2). leaves: (rows, numbers). */
#define N_ROWS (LANES / 2)
FOR_AES void mpcformer_points_correct(const void *hash_keys, i64 rows, i64 n, i64 numbers, const i64 *roots,
                                           const i64 *places, const i64 *payload, i64 *levels, i64 *leaves) {
  RoundKeys keys[N_HASHES];
  for (int i = 0; i < N_HASHES; i++) set_key(keys[i].key, (const char *)hash_keys + 16 * i);
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

int mpcformer_points_level(void) { return NONE; }

void mpcformer_points_expand(int level, const void *hash_keys, const void *a) { (void)level, (void)hash_keys, (void)a; }

void mpcformer_points_correct(const void *hash_keys, i64 rows, i64 n, i64 numbers, const i64 *roots, const i64 *places,
                              const i64 *payload, i64 *levels, i64 *leaves) {
  (void)hash_keys, (void)rows, (void)n, (void)numbers, (void)roots, (void)places, (void)payload, (void)levels;
  (void)leaves;
}

#endif
