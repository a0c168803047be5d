/* Products of ring elements by a matrix of short numbers, such as weights in the clear.

   mpcformer/ring/short.py loads these functions from the same compiled file as those of kernels.c.

   The numbers of A are cut into balanced limbs of 16 bits: x = l_0 + 2^16 l_1 + 2^32 l_2 + ... The numbers of B have 16
   bits too, so that one instruction multiplies pairs of limbs by pairs of numbers and adds both products to a sum of 32
   bits. A limb's sum over BLOCK rows of B is right modulo 2^32, and exact if the numbers of B are small enough, which
   the caller has to know where a ring has more than 32 bits. */

#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef int16_t i16;
typedef uint64_t u64;
typedef i32 __attribute__((may_alias)) pair;

/* short.py knows these. The levels are those of kernels.c, and one more. */
enum { NONE = 0, AVX2 = 1, AVX512 = 2, VNNI = 3 };
#define BLOCK 256

/* Rows of limbs that meet a panel of B before the next panel is copied. */
#define ROWS_OF_LIMBS 256

/* Strides count elements. Rows of A and of C are contiguous; the element (k, n) of B lies at k * b_row + n * b_col. */
typedef struct {
  i64 m, k, n, limbs;
  const i64 *a;
  i64 a_row;
  const i16 *b;
  i64 b_row, b_col;
  i64 *c;
  i64 c_row;
} ShortProduct;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define FOR_AVX2 __attribute__((target("avx2")))
#define FOR_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))
#define FOR_VNNI __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")))
#define UNROLLED _Pragma("GCC unroll 8")

/* What the processor has, of what is compiled here. */
int mpcformer_short_level(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512vnni") ? VNNI : AVX512;
  return __builtin_cpu_supports("avx2") ? AVX2 : NONE;
}

/* ---- tiles: sums = some rows of limbs by the three vectors of columns of a panel, whose rows are pairs --------------- */

#define MADD256(sum, x, y) _mm256_add_epi32(sum, _mm256_madd_epi16(x, y))
#define MADD512(sum, x, y) _mm512_add_epi32(sum, _mm512_madd_epi16(x, y))

#define TILE(NAME, TARGET, VECTOR, LANES, ROWS, SET, MULTIPLY)                                                         \
  TARGET static void NAME(const i16 *limbs, const i32 *panel, i64 pairs, i32 *sums) {                                  \
    const VECTOR *y = (const VECTOR *)panel;                                                                           \
    VECTOR s[ROWS][3];                                                                                                 \
    UNROLLED for (int i = 0; i < ROWS; i++) s[i][0] = s[i][1] = s[i][2] = SET(0);                                      \
    for (i64 k = 0; k < pairs; k++, y += 3) {                                                                          \
      VECTOR y0 = y[0], y1 = y[1], y2 = y[2];                                                                          \
      UNROLLED for (int i = 0; i < ROWS; i++) {                                                                        \
        VECTOR x = SET(((const pair *)(limbs + i * BLOCK))[k]);                                                        \
        s[i][0] = MULTIPLY(s[i][0], x, y0);                                                                            \
        s[i][1] = MULTIPLY(s[i][1], x, y1);                                                                            \
        s[i][2] = MULTIPLY(s[i][2], x, y2);                                                                            \
      }                                                                                                                \
    }                                                                                                                  \
    UNROLLED for (int i = 0; i < ROWS; i++) {                                                                          \
      VECTOR *to = (VECTOR *)(sums + 3 * LANES * i);                                                                   \
      to[0] = s[i][0], to[1] = s[i][1], to[2] = s[i][2];                                                               \
    }                                                                                                                  \
  }
TILE(tile_avx2, FOR_AVX2, __m256i, 8, 4, _mm256_set1_epi32, MADD256)
TILE(tile_avx512, FOR_AVX512, __m512i, 16, 8, _mm512_set1_epi32, MADD512)
TILE(tile_vnni, FOR_VNNI, __m512i, 16, 8, _mm512_set1_epi32, _mm512_dpwssd_epi32)

/* ---- products ------------------------------------------------------------------------------------------------------ */

/* Fill a panel: a pair of numbers of B, of rows k and k + 1, for each of its columns. What B lacks of it is zero. */
static inline __attribute__((always_inline)) void fill(const ShortProduct *p, i64 k0, i64 depth, i64 n0, i64 width,
                                                       i64 columns, i32 *panel) {
  for (i64 k = 0; k < depth; k += 2, panel += columns) {
    const i16 *row = p->b + (k0 + k) * p->b_row + n0 * p->b_col, *next = row + p->b_row;
    if (k + 1 < depth && width == columns && p->b_col == 1)
      for (i64 j = 0; j < columns; j++) panel[j] = (uint16_t)row[j] | (i32)((uint32_t)next[j] << 16);
    else
      for (i64 j = 0; j < columns; j++) {
        uint32_t low = j < width ? (uint16_t)row[j * p->b_col] : 0;
        panel[j] = (i32)(low | (j < width && k + 1 < depth ? (uint32_t)next[j * p->b_col] << 16 : 0));
      }
  }
}

/* Cut numbers of A into limbs, each of which has a row. Half a unit of each lower limb makes up for negative ones. */
static inline __attribute__((always_inline)) void cut(const i64 *from, i64 depth, i64 n_limbs, i16 *to) {
  for (i64 l = 0; l < n_limbs; l++, to += BLOCK) {
    u64 half = (((u64)1 << 16 * l) - 1) / 0xFFFF << 15;
    for (i64 k = 0; k < depth; k++) to[k] = (i16)(((u64)from[k] + half) >> 16 * l);
    if (depth % 2) to[depth] = 0;
  }
}

/* A tile always has all of its rows: behind the last rows of limbs lies what was there before. */
#define PRODUCT(NAME, TARGET, COLUMNS, ROWS, TILE)                                                                     \
  TARGET static void NAME(const ShortProduct *p) {                                                                     \
    i16 limbs[(ROWS_OF_LIMBS + ROWS) * BLOCK] __attribute__((aligned(64)));                                            \
    i32 panel[BLOCK / 2 * COLUMNS] __attribute__((aligned(64)));                                                       \
    i32 sums[ROWS * COLUMNS] __attribute__((aligned(64)));                                                             \
    const i64 n_limbs = p->limbs, rows_of_a = ROWS_OF_LIMBS / n_limbs;                                                 \
    memset(limbs, 0, sizeof limbs);                                                                                    \
    for (i64 m0 = 0; m0 < p->m; m0 += rows_of_a) {                                                                     \
      i64 rows = p->m - m0 < rows_of_a ? p->m - m0 : rows_of_a;                                                        \
      for (i64 k0 = 0; k0 < p->k; k0 += BLOCK) {                                                                       \
        i64 depth = p->k - k0 < BLOCK ? p->k - k0 : BLOCK, pairs = (depth + 1) / 2;                                    \
        for (i64 i = 0; i < rows; i++)                                                                                 \
          cut(p->a + (m0 + i) * p->a_row + k0, depth, n_limbs, limbs + i * n_limbs * BLOCK);                           \
        for (i64 n0 = 0; n0 < p->n; n0 += COLUMNS) {                                                                   \
          i64 width = p->n - n0 < COLUMNS ? p->n - n0 : COLUMNS;                                                       \
          fill(p, k0, depth, n0, width, COLUMNS, panel);                                                               \
          for (i64 t = 0; t < rows * n_limbs; t += ROWS) {                                                             \
            TILE(limbs + t * BLOCK, panel, pairs, sums);                                                               \
            for (i64 i = 0; i < ROWS && t + i < rows * n_limbs; i++) {                                                 \
              i64 row = (t + i) / n_limbs, limb = (t + i) % n_limbs, *out = p->c + (m0 + row) * p->c_row + n0;         \
              const i32 *sum = sums + i * COLUMNS;                                                                     \
              if (k0 == 0 && limb == 0)                                                                                \
                for (i64 j = 0; j < width; j++) out[j] = sum[j];                                                       \
              else                                                                                                     \
                for (i64 j = 0; j < width; j++) out[j] += (u64)(i64)sum[j] << 16 * limb;                               \
            }                                                                                                          \
          }                                                                                                            \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }
PRODUCT(product_avx2, FOR_AVX2, 24, 4, tile_avx2)
PRODUCT(product_avx512, FOR_AVX512, 48, 8, tile_avx512)
PRODUCT(product_vnni, FOR_VNNI, 48, 8, tile_vnni)

/* Compute the product of int64 A by int16 B into int64 C. It is right modulo 2^32 by two limbs. It is right modulo
   2^(16 limbs) if a column's numbers add up, by size, to less than 2^16 in each block of rows of B. Returns 0, or 1 if
   there is no such product. */
int mpcformer_short_matmul(int level, const ShortProduct *p) {
  void (*product)(const ShortProduct *) = level == VNNI ? product_vnni : level == AVX512 ? product_avx512 : 0;
  if (level == AVX2) product = product_avx2;
  if (!product || p->limbs < 1 || p->limbs > 4) return 1;
  product(p);
  return 0;
}

#else

int mpcformer_short_level(void) { return NONE; }

int mpcformer_short_matmul(int level, const ShortProduct *p) {
  (void)level, (void)p;
  return 1;
}

#endif
