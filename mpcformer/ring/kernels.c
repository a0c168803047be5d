/* Matrix products of ring elements. mpcformer/ring/kernels.py loads this file, checks it and falls back without it.

   It is plain C and includes neither Python nor torch. Each function is compiled for AVX2 and for AVX-512, whatever the
   compiler's default is, and the caller chooses by what the processor has.

   A product C = A B is computed in blocks, as is usual: a panel of B of some columns and at most BLOCK rows is copied
   into a buffer that stays in the first cache, and the rows of A meet it there. A tile of C stays in registers
   meanwhile. All sums wrap around, which is what a ring wants; those modulo 2^52 wrap at 64 bits, which is a multiple. */

#include <stdint.h>

typedef int64_t i64;
typedef int32_t i32;
typedef uint64_t u64;

/* The version of the arguments of all compiled functions, which library.py expects. */
int mpcformer_arguments_version(void) { return 4; }

enum { NONE = 0, AVX2 = 1, AVX512 = 2, IFMA = 3 };

/* Rows of B in a panel, and rows of A that meet a panel before the next one is copied. */
#define BLOCK 192
#define ROWS_OF_A 240

/* The matrices of a batch of products. Strides count elements. The element (k, n) of B lies at k * b_row + n * b_col, so
   that B may be transposed. Rows of A and of C are contiguous. */
typedef struct {
  i64 batches, m, k, n;
  const i64 *a;
  i64 a_batch, a_row;
  const void *b;
  i64 b_batch, b_row, b_col;
  i64 *c;
  i64 c_batch, c_row;
} Product;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

#define FOR_AVX2 __attribute__((target("avx2")))
#define FOR_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))
#define FOR_IFMA __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512ifma")))

#define EACH3(X) X(0) X(1) X(2)
#define EACH6(X) X(0) X(1) X(2) X(3) X(4) X(5)
#define EACH8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* What the processor has, of what is compiled here. */
int mpcformer_kernels_level(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512ifma") ? IFMA : AVX512;
  return __builtin_cpu_supports("avx2") ? AVX2 : NONE;
}

/* ---- tiles: out (rows, columns) = or += the rows of A by the panel ------------------------------------------------ */

/* Modulo 2^64 by AVX2, which multiplies 32 bits: x y = xl yl + 2^32 (xl yh + xh yl). With the halves of x exchanged, one
   instruction gives both mixed products. */
FOR_AVX2 static void tile64_avx2(const i64 *const *row, const i64 *panel, i64 depth, i64 *out, i64 stride, int first) {
#define START(i)                                                                                                       \
  const i64 *r##i = row[i];                                                                                            \
  __m256i low##i##0 = _mm256_setzero_si256(), low##i##1 = low##i##0, mixed##i##0 = low##i##0, mixed##i##1 = low##i##0;
  EACH3(START)
#undef START
  for (i64 k = 0; k < depth; k++) {
    const __m256i *y = (const __m256i *)(panel + 8 * k);
    __m256i y0 = y[0], y1 = y[1], x;
#define STEP(i)                                                                                                        \
  x = _mm256_set1_epi64x(r##i[k]);                                                                                     \
  low##i##0 = _mm256_add_epi64(low##i##0, _mm256_mul_epu32(x, y0));                                                    \
  low##i##1 = _mm256_add_epi64(low##i##1, _mm256_mul_epu32(x, y1));                                                    \
  x = _mm256_shuffle_epi32(x, 0xB1);                                                                                   \
  mixed##i##0 = _mm256_add_epi32(mixed##i##0, _mm256_mullo_epi32(x, y0));                                              \
  mixed##i##1 = _mm256_add_epi32(mixed##i##1, _mm256_mullo_epi32(x, y1));
    EACH3(STEP)
#undef STEP
  }
#define STORE(i, j)                                                                                                    \
  {                                                                                                                    \
    __m256i *at = (__m256i *)(out + i * stride + 4 * j);                                                               \
    __m256i both = _mm256_add_epi32(mixed##i##j, _mm256_srli_epi64(mixed##i##j, 32));                                  \
    __m256i sum = _mm256_add_epi64(low##i##j, _mm256_slli_epi64(both, 32));                                            \
    _mm256_storeu_si256(at, first ? sum : _mm256_add_epi64(sum, _mm256_loadu_si256(at)));                              \
  }
#define STORES(i) STORE(i, 0) STORE(i, 1)
  EACH3(STORES)
#undef STORES
#undef STORE
}

/* Modulo 2^64 by AVX-512. */
FOR_AVX512 static void tile64_avx512(const i64 *const *row, const i64 *panel, i64 depth, i64 *out, i64 stride,
                                     int first) {
#define START(i)                                                                                                       \
  const i64 *r##i = row[i];                                                                                            \
  __m512i s##i##0 = _mm512_setzero_si512(), s##i##1 = s##i##0, s##i##2 = s##i##0;
  EACH8(START)
#undef START
  for (i64 k = 0; k < depth; k++) {
    const __m512i *y = (const __m512i *)(panel + 24 * k);
    __m512i y0 = y[0], y1 = y[1], y2 = y[2], x;
#define STEP(i)                                                                                                        \
  x = _mm512_set1_epi64(r##i[k]);                                                                                      \
  s##i##0 = _mm512_add_epi64(s##i##0, _mm512_mullo_epi64(x, y0));                                                      \
  s##i##1 = _mm512_add_epi64(s##i##1, _mm512_mullo_epi64(x, y1));                                                      \
  s##i##2 = _mm512_add_epi64(s##i##2, _mm512_mullo_epi64(x, y2));
    EACH8(STEP)
#undef STEP
  }
#define STORE(i, j)                                                                                                    \
  {                                                                                                                    \
    i64 *at = out + i * stride + 8 * j;                                                                                \
    _mm512_storeu_si512(at, first ? s##i##j : _mm512_add_epi64(s##i##j, _mm512_loadu_si512(at)));                      \
  }
#define STORES(i) STORE(i, 0) STORE(i, 1) STORE(i, 2)
  EACH8(STORES)
#undef STORES
#undef STORE
}

/* Modulo 2^52 by AVX-512 IFMA, which adds the low 52 bits of products of 52 bits to sums of 64. */
FOR_IFMA static void tile52_ifma(const i64 *const *row, const i64 *panel, i64 depth, i64 *out, i64 stride, int first) {
#define START(i)                                                                                                       \
  const i64 *r##i = row[i];                                                                                            \
  __m512i s##i##0 = _mm512_setzero_si512(), s##i##1 = s##i##0, s##i##2 = s##i##0;
  EACH8(START)
#undef START
  for (i64 k = 0; k < depth; k++) {
    const __m512i *y = (const __m512i *)(panel + 24 * k);
    __m512i y0 = y[0], y1 = y[1], y2 = y[2], x;
#define STEP(i)                                                                                                        \
  x = _mm512_set1_epi64(r##i[k]);                                                                                      \
  s##i##0 = _mm512_madd52lo_epu64(s##i##0, x, y0);                                                                     \
  s##i##1 = _mm512_madd52lo_epu64(s##i##1, x, y1);                                                                     \
  s##i##2 = _mm512_madd52lo_epu64(s##i##2, x, y2);
    EACH8(STEP)
#undef STEP
  }
#define STORE(i, j)                                                                                                    \
  {                                                                                                                    \
    i64 *at = out + i * stride + 8 * j;                                                                                \
    _mm512_storeu_si512(at, first ? s##i##j : _mm512_add_epi64(s##i##j, _mm512_loadu_si512(at)));                      \
  }
#define STORES(i) STORE(i, 0) STORE(i, 1) STORE(i, 2)
  EACH8(STORES)
#undef STORES
#undef STORE
}

/* Modulo 2^32 by AVX2: the low halves of A's numbers count, and sums are sign-extended when they are stored. */
FOR_AVX2 static void tile32_avx2(const i64 *const *row, const i32 *panel, i64 depth, i64 *out, i64 stride, int first) {
#define START(i)                                                                                                       \
  const i64 *r##i = row[i];                                                                                            \
  __m256i s##i##0 = _mm256_setzero_si256(), s##i##1 = s##i##0;
  EACH6(START)
#undef START
  for (i64 k = 0; k < depth; k++) {
    const __m256i *y = (const __m256i *)(panel + 16 * k);
    __m256i y0 = y[0], y1 = y[1], x;
#define STEP(i)                                                                                                        \
  x = _mm256_set1_epi32((i32)r##i[k]);                                                                                 \
  s##i##0 = _mm256_add_epi32(s##i##0, _mm256_mullo_epi32(x, y0));                                                      \
  s##i##1 = _mm256_add_epi32(s##i##1, _mm256_mullo_epi32(x, y1));
    EACH6(STEP)
#undef STEP
  }
  i32 sums[16] __attribute__((aligned(32)));
#define STORES(i)                                                                                                      \
  _mm256_store_si256((__m256i *)sums, s##i##0);                                                                        \
  _mm256_store_si256((__m256i *)(sums + 8), s##i##1);                                                                  \
  if (first)                                                                                                           \
    for (int j = 0; j < 16; j++) out[i * stride + j] = sums[j];                                                        \
  else                                                                                                                 \
    for (int j = 0; j < 16; j++) out[i * stride + j] = (i32)((uint32_t)out[i * stride + j] + (uint32_t)sums[j]);
  EACH6(STORES)
#undef STORES
}

/* Modulo 2^32 by AVX-512. */
FOR_AVX512 static void tile32_avx512(const i64 *const *row, const i32 *panel, i64 depth, i64 *out, i64 stride,
                                     int first) {
#define START(i)                                                                                                       \
  const i64 *r##i = row[i];                                                                                            \
  __m512i s##i##0 = _mm512_setzero_si512(), s##i##1 = s##i##0, s##i##2 = s##i##0;
  EACH8(START)
#undef START
  for (i64 k = 0; k < depth; k++) {
    const __m512i *y = (const __m512i *)(panel + 48 * k);
    __m512i y0 = y[0], y1 = y[1], y2 = y[2], x;
#define STEP(i)                                                                                                        \
  x = _mm512_set1_epi32((i32)r##i[k]);                                                                                 \
  s##i##0 = _mm512_add_epi32(s##i##0, _mm512_mullo_epi32(x, y0));                                                      \
  s##i##1 = _mm512_add_epi32(s##i##1, _mm512_mullo_epi32(x, y1));                                                      \
  s##i##2 = _mm512_add_epi32(s##i##2, _mm512_mullo_epi32(x, y2));
    EACH8(STEP)
#undef STEP
  }
  i32 sums[48] __attribute__((aligned(64)));
#define STORES(i)                                                                                                      \
  _mm512_store_si512(sums, s##i##0);                                                                                   \
  _mm512_store_si512(sums + 16, s##i##1);                                                                              \
  _mm512_store_si512(sums + 32, s##i##2);                                                                              \
  if (first)                                                                                                           \
    for (int j = 0; j < 48; j++) out[i * stride + j] = sums[j];                                                        \
  else                                                                                                                 \
    for (int j = 0; j < 48; j++) out[i * stride + j] = (i32)((uint32_t)out[i * stride + j] + (uint32_t)sums[j]);
  EACH8(STORES)
#undef STORES
}

/* ---- panels: some columns of B, row after row; columns that B lacks are zero --------------------------------------- */

#define PANEL(NAME, TARGET, FROM, ELEMENT, COLUMNS)                                                                    \
  TARGET static void NAME(const FROM *b, i64 b_row, i64 b_col, i64 depth, i64 width, ELEMENT *panel) {                 \
    for (i64 k = 0; k < depth; k++)                                                                                    \
      if (width == COLUMNS && b_col == 1)                                                                              \
        for (i64 j = 0; j < COLUMNS; j++) panel[k * COLUMNS + j] = b[k * b_row + j];                                   \
      else                                                                                                             \
        for (i64 j = 0; j < COLUMNS; j++) panel[k * COLUMNS + j] = j < width ? b[k * b_row + j * b_col] : 0;           \
  }
PANEL(panel64_avx2, FOR_AVX2, i64, i64, 8)
PANEL(panel64_avx512, FOR_AVX512, i64, i64, 24)
PANEL(panel64_avx2_short, FOR_AVX2, i32, i64, 8)
PANEL(panel64_avx512_short, FOR_AVX512, i32, i64, 24)
PANEL(panel32_avx2, FOR_AVX2, i32, i32, 16)
PANEL(panel32_avx512, FOR_AVX512, i32, i32, 48)

/* ---- products ------------------------------------------------------------------------------------------------------ */

/* A tile always has all rows and columns: what C lacks of them goes into a buffer, and rows that A lacks repeat one. */
#define PRODUCT(NAME, TARGET, FROM, ELEMENT, ROWS, COLUMNS, COPY, TILE)                                                \
  TARGET static void NAME(const Product *p, i64 batch) {                                                               \
    ELEMENT panel[BLOCK * COLUMNS] __attribute__((aligned(64)));                                                       \
    i64 buffer[ROWS * COLUMNS];                                                                                        \
    const i64 *a = p->a + batch * p->a_batch;                                                                          \
    const FROM *b = (const FROM *)p->b + batch * p->b_batch;                                                           \
    i64 *c = p->c + batch * p->c_batch;                                                                                \
    for (i64 m0 = 0; m0 < p->m; m0 += ROWS_OF_A) {                                                                     \
      i64 end = p->m - m0 < ROWS_OF_A ? p->m : m0 + ROWS_OF_A;                                                         \
      for (i64 k0 = 0; k0 < p->k; k0 += BLOCK) {                                                                       \
        i64 depth = p->k - k0 < BLOCK ? p->k - k0 : BLOCK;                                                             \
        for (i64 n0 = 0; n0 < p->n; n0 += COLUMNS) {                                                                   \
          i64 width = p->n - n0 < COLUMNS ? p->n - n0 : COLUMNS;                                                       \
          COPY(b + k0 * p->b_row + n0 * p->b_col, p->b_row, p->b_col, depth, width, panel);                            \
          for (i64 m = m0; m < end; m += ROWS) {                                                                       \
            i64 rows = end - m < ROWS ? end - m : ROWS;                                                                \
            const i64 *row[ROWS];                                                                                      \
            for (i64 i = 0; i < ROWS; i++) row[i] = a + (m + (i < rows ? i : 0)) * p->a_row + k0;                      \
            i64 *out = c + m * p->c_row + n0;                                                                          \
            if (rows == ROWS && width == COLUMNS) {                                                                    \
              TILE(row, panel, depth, out, p->c_row, k0 == 0);                                                         \
              continue;                                                                                                \
            }                                                                                                          \
            for (i64 i = 0; k0 && i < rows; i++)                                                                       \
              for (i64 j = 0; j < width; j++) buffer[i * COLUMNS + j] = out[i * p->c_row + j];                         \
            TILE(row, panel, depth, buffer, COLUMNS, k0 == 0);                                                         \
            for (i64 i = 0; i < rows; i++)                                                                             \
              for (i64 j = 0; j < width; j++) out[i * p->c_row + j] = buffer[i * COLUMNS + j];                         \
          }                                                                                                            \
        }                                                                                                              \
      }                                                                                                                \
    }                                                                                                                  \
  }
PRODUCT(product64_avx2, FOR_AVX2, i64, i64, 3, 8, panel64_avx2, tile64_avx2)
PRODUCT(product64_avx512, FOR_AVX512, i64, i64, 8, 24, panel64_avx512, tile64_avx512)
PRODUCT(product64_avx2_short, FOR_AVX2, i32, i64, 3, 8, panel64_avx2_short, tile64_avx2)
PRODUCT(product64_avx512_short, FOR_AVX512, i32, i64, 8, 24, panel64_avx512_short, tile64_avx512)
PRODUCT(product52_ifma, FOR_IFMA, i64, i64, 8, 24, panel64_avx512, tile52_ifma)
PRODUCT(product52_ifma_short, FOR_IFMA, i32, i64, 8, 24, panel64_avx512_short, tile52_ifma)
PRODUCT(product32_avx2, FOR_AVX2, i32, i32, 6, 16, panel32_avx2, tile32_avx2)
PRODUCT(product32_avx512, FOR_AVX512, i32, i32, 8, 48, panel32_avx512, tile32_avx512)

/* Compute the products of int64 A by B into int64 C, which are right modulo 2^bits for bits of 32, 52 or 64; C has no
   higher bits only if there are 32. B is int32 if it is short, else int64. Returns 0, or 1 if it does nothing, because
   there is no such product. */
int mpcformer_kernels_matmul(int level, int bits, int is_short, const Product *p) {
  void (*product)(const Product *, i64) = 0;
  if (bits == 52 && level < IFMA) bits = 64;
  if (level == IFMA && bits == 52) product = is_short ? product52_ifma_short : product52_ifma;
  if (level >= AVX512 && bits == 64) product = is_short ? product64_avx512_short : product64_avx512;
  if (level >= AVX512 && bits == 32 && is_short) product = product32_avx512;
  if (level == AVX2 && bits == 64) product = is_short ? product64_avx2_short : product64_avx2;
  if (level == AVX2 && bits == 32 && is_short) product = product32_avx2;
  if (!product) return 1;
  for (i64 batch = 0; batch < p->batches; batch++) product(p, batch);
  return 0;
}

#else

int mpcformer_kernels_level(void) { return NONE; }

int mpcformer_kernels_matmul(int level, int bits, int is_short, const Product *p) {
  (void)level, (void)bits, (void)is_short, (void)p;
  return 1;
}

#endif
