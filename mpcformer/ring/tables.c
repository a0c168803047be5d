/* Looking numbers up in tables by keys, as mpcformer/protocols/table.py describes it: one pass over the shares of the
   indicator of each row's bin, instead of one for each product. And sums of the rows of a large table by bucket, as
   mpcformer/correlations/row_lookup.py describes them.

   mpcformer/ring/tables.py loads these functions from the same compiled file as those of kernels.c. */

#include <stdint.h>

typedef int64_t i64;
typedef uint64_t u64;

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_AVX2 __attribute__((target("avx2")))
#else
#define FOR_AVX2
#endif

/* The arguments. first: where a row's turned tables begin, (rows,). Each table has 2 n numbers: those of the n bins from
   the last to the first, twice. marks: `n_marks` tables. k: three tables of coefficients, or null. x: (rows,). one, low
   and squared: the shares, (rows, n) each; tag_one, tag_low and tag_squared: the same times a row's key, or null.
   Results are (rows,): `n_marks` of marks, of the function, and of the tagged one. */
typedef struct {
  i64 rows, n, n_marks;
  const i64 *first, *marks, *k, *x, *one, *low, *squared, *tag_one, *tag_low, *tag_squared;
  i64 *out_marks, *out, *out_tags;
} LookUp;

/* k0 + k1 (x - low) + k2 (x - low)^2 times what `one` holds. */
FOR_AVX2 static i64 quadratic(const i64 *k, i64 n, u64 x, const i64 *one, const i64 *low, const i64 *squared) {
  const i64 *k1 = k + 2 * n, *k2 = k + 4 * n;
  u64 k0_one = 0, k1_one = 0, k2_one = 0, k1_low = 0, k2_low = 0, k2_squared = 0;
  for (i64 p = 0; p < n; p++) {
    u64 o = (u64)one[p], l = (u64)low[p];
    k0_one += (u64)k[p] * o;
    k1_one += (u64)k1[p] * o;
    k2_one += (u64)k2[p] * o;
    k1_low += (u64)k1[p] * l;
    k2_low += (u64)k2[p] * l;
    k2_squared += (u64)k2[p] * (u64)squared[p];
  }
  return (i64)(k0_one + x * k1_one - k1_low + x * x * k2_one - 2 * x * k2_low + k2_squared);
}

FOR_AVX2 void mpcformer_tables_look_up(const LookUp *a) {
  const i64 n = a->n;
  for (i64 row = 0; row < a->rows; row++) {
    const i64 *one = a->one + row * n;
    for (i64 m = 0; m < a->n_marks; m++) {
      const i64 *mark = a->marks + 2 * m * n + a->first[row];
      u64 sum = 0;
      for (i64 p = 0; p < n; p++) sum += (u64)mark[p] * (u64)one[p];
      a->out_marks[m * a->rows + row] = (i64)sum;
    }
    if (!a->k) continue;
    const i64 *k = a->k + a->first[row];
    u64 x = (u64)a->x[row];
    a->out[row] = quadratic(k, n, x, one, a->low + row * n, a->squared + row * n);
    if (a->tag_one)
      a->out_tags[row] = quadratic(k, n, x, a->tag_one + row * n, a->tag_low + row * n, a->tag_squared + row * n);
  }
}

/* The arguments. factors: (parts, groups, rows). buckets: (groups, rows), of a row in each group, below n_buckets. table:
   (rows, width). out: (parts, n_buckets, width), of zeros. */
typedef struct {
  i64 parts, groups, rows, width, n_buckets;
  const int32_t *factors, *buckets, *table;
  int32_t *out;
} ByBucket;

/* Add each row of the table, times its factors, to the sums of its buckets, over Z_2^32. The table is read once. */
FOR_AVX2 void mpcformer_tables_by_bucket(const ByBucket *a) {
  for (i64 row = 0; row < a->rows; row++) {
    const uint32_t *restrict from = (const uint32_t *)a->table + row * a->width;
    for (i64 part = 0; part < a->parts; part++)
      for (i64 group = 0; group < a->groups; group++) {
        uint32_t factor = (uint32_t)a->factors[(part * a->groups + group) * a->rows + row];
        i64 bucket = part * a->n_buckets + a->buckets[group * a->rows + row];
        uint32_t *restrict to = (uint32_t *)a->out + bucket * a->width;
        for (i64 i = 0; i < a->width; i++) to[i] += factor * from[i];
      }
  }
}
