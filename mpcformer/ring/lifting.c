/* Lifted openings: what mpcformer/protocols/lifted.py computes of an opened number, and what the dealer adds to it.

   mpcformer/ring/lifting.py loads these functions from the same compiled file as those of kernels.c. Each of them is
   one pass over its arrays. */

#include "packing.h"

/* ---- openings ------------------------------------------------------------------------------------------------------ */

/* The arguments. Numbers are those of `Opened`: c is opened in [0, 2^bits), and lift is the width of the large ring.
   Arrays have rows x width elements; those of rows alone are wanted for a product with a factor: its public part, eta,
   and whether its mask may have wrapped. Arrays that have a number of bits are packed, unless that number is zero. A
   result is shifted `down` bits, as `shift` does it for the owner `rank`; up if `down` is negative. */
typedef struct {
  i64 rows, width, bits, lift, rank, offset, down;
  const i64 *c, *r;
  const void *carry, *m, *rm, *squares, *rb, *mb, *rn;
  i64 carry_bits, m_bits, rm_bits, squares_bits, rb_bits, mb_bits, rn_bits;
  const i64 *factor, *eta, *wrapped;
  i64 *out;
} Lift;

/* Packed arrays are read by so many elements at a time. */
#define PART 256

/* The elements of an array from `from` on, unpacked if need be; null if there is no array. */
static inline const i64 *part_of(const void *array, i64 bits, i64 n, i64 from, i64 to, i64 *buffer) {
  if (!array || !bits) return array ? (const i64 *)array + from : 0;
  mpcformer_packing_read(array, n, (int)bits, from, to, buffer);
  return buffer;
}

enum { VALUE = 0, SQUARE = 1, LENGTH = 2, TIMES = 3 };

static inline i64 shifted(u64 value, i64 down, i64 rank) {
  return down > 0 ? ((i64)value >> down) + (rank == 0) : (i64)(value << -down);
}

/* Elements `from` to `to`, which lie in one row. `use` and `rank` are constants where this is called, so that a loop has
   no branches. Returns the sum over the elements if a length is wanted. */
INLINE u64 lifted(const Lift *a, int use, int rank, i64 row, i64 from, i64 to) {
  i64 buffers[7][PART];
  const i64 n = a->rows * a->width, bits = a->bits, down = a->down, twice = 2 * bits < a->lift ? 2 * bits : -1;
  const u64 low = (u64)1 << (bits - 2);
#define PART_OF(name, at) const i64 *name = part_of(a->name, a->name##_bits, n, from, to, buffers[at])
  PART_OF(carry, 0);
  PART_OF(m, 1);
  const i64 *rm = 0, *squares = 0, *rb = 0, *mb = 0, *rn = 0;
  if (use == SQUARE || use == LENGTH) rm = part_of(a->rm, a->rm_bits, n, from, to, buffers[2]);
  if (use == SQUARE) squares = part_of(a->squares, a->squares_bits, n, from, to, buffers[3]);
  if (use == TIMES) {
    rb = part_of(a->rb, a->rb_bits, n, from, to, buffers[4]);
    mb = part_of(a->mb, a->mb_bits, n, from, to, buffers[5]);
    rn = part_of(a->rn, a->rn_bits, n, from, to, buffers[6]);
  }
#undef PART_OF
  const i64 *c = a->c + from, *r = a->r + from;
  i64 *out = a->out + from;
  u64 total = 0, factor = 0, eta = 0, wrapped = 0;
  if (use == TIMES) factor = (u64)a->factor[row], eta = (u64)a->eta[row], wrapped = (u64)a->wrapped[row];
  for (i64 i = 0; i < to - from; i++) {
    u64 no_msb = ((u64)c[i] >> (bits - 1)) - 1; /* all ones where the top bit is zero */
    u64 wrap = (u64)m[i] & no_msb, open = (u64)c[i] - low;
    u64 rho = (u64)r[i] - (((u64)carry[i] + wrap) << bits), value;
    if (use == VALUE) {
      value = (rank == 0 ? open : 0) - rho;
    } else if (use == TIMES) {
      u64 product = (u64)rb[i] - (((u64)mb[i] & no_msb) << bits);
      if (rn) product -= ((u64)rn[i] * wrapped) << 40;
      value = (rank == 0 ? open * factor : 0) - open * eta - rho * factor + product;
    } else {
      u64 beyond = (twice < 0 ? 0 : wrap << twice) - (((u64)rm[i] & no_msb) << (bits + 1));
      open += (u64)a->offset;
      value = (rank == 0 ? open * open : 0) - 2 * open * rho + beyond;
      if (use == SQUARE) value += (u64)squares[i];
    }
    if (use == LENGTH)
      total += value;
    else
      out[i] = shifted(value, down, rank);
  }
  return total;
}

/* All rows, by parts. Rows mean nothing to results of elements alone, so these have a single one. */
INLINE void lifted_rows(const Lift *a, int use, int rank) {
  const int by_row = use == LENGTH || use == TIMES;
  const i64 rows = by_row ? a->rows : 1, width = by_row ? a->width : a->rows * a->width;
  for (i64 row = 0; row < rows; row++) {
    u64 total = 0;
    for (i64 from = row * width, end = from + width; from < end; from += PART)
      total += lifted(a, use, rank, row, from, end - from < PART ? end : from + PART);
    if (use == LENGTH) a->out[row] = (i64)(total + ((const u64 *)a->squares)[row]);
  }
}

FOR_AVX2 int mpcformer_lifting_open(int use, const Lift *a) {
#define EITHER(name)                                                                                                   \
  case name:                                                                                                           \
    if (a->rank == 0)                                                                                                  \
      lifted_rows(a, name, 0);                                                                                         \
    else                                                                                                               \
      lifted_rows(a, name, 1);                                                                                         \
    return 0;
  switch (use) {
    EITHER(VALUE)
    EITHER(SQUARE)
    EITHER(LENGTH)
    EITHER(TIMES)
  }
#undef EITHER
  return 1;
}

/* ---- the dealer's corrections -------------------------------------------------------------------------------------- */

/* The arguments. Arrays have rows x width elements; those of rows alone are beta and squares (if `squares` is ROWS), b
   and n. Each correction is a value of r = (r_0 + r_1) mod 2^bits, or of beta = beta_0 + beta_1, less the share. Those
   that a use does not have are null. */
typedef struct {
  i64 rows, width, bits, squares;
  const i64 *r_0, *r_1, *beta_0, *beta_1;
  const i64 *carry, *m, *rm, *square, *b, *n, *rb, *mb, *rn;
  i64 *out_carry, *out_m, *out_rm, *out_square, *out_b, *out_n, *out_rb, *out_mb, *out_rn;
} LiftCorrection;

enum { NO_SQUARES = 0, ELEMENTS = 1, ROWS = 2 };

FOR_AVX2 void mpcformer_lifting_correct(const LiftCorrection *a) {
  const u64 mask = ((u64)1 << a->bits) - 1;
  const i64 bits = a->bits;
  for (i64 row = 0; row < a->rows; row++) {
    i64 from = row * a->width, end = from + a->width;
    for (i64 i = from; i < end; i++) {
      u64 total = (u64)a->r_0[i] + (u64)a->r_1[i];
      a->out_carry[i] = (i64)((total >> bits) - (u64)a->carry[i]);
      a->out_m[i] = (i64)(((total & mask) >> (bits - 1)) - (u64)a->m[i]);
    }
    if (a->squares) {
      u64 sum = 0;
      for (i64 i = from; i < end; i++) {
        u64 r = ((u64)a->r_0[i] + (u64)a->r_1[i]) & mask;
        a->out_rm[i] = (i64)((r >> (bits - 1) ? r : 0) - (u64)a->rm[i]);
        if (a->squares == ELEMENTS)
          a->out_square[i] = (i64)(r * r - (u64)a->square[i]);
        else
          sum += r * r;
      }
      if (a->squares == ROWS) a->out_square[row] = (i64)(sum - (u64)a->square[row]);
    }
    if (a->beta_0) {
      u64 beta = (u64)a->beta_0[row] + (u64)a->beta_1[row], b = beta >> 24, n = beta >> 63;
      a->out_b[row] = (i64)(b - (u64)a->b[row]);
      a->out_n[row] = (i64)(n - (u64)a->n[row]);
      for (i64 i = from; i < end; i++) {
        u64 r = ((u64)a->r_0[i] + (u64)a->r_1[i]) & mask;
        a->out_rb[i] = (i64)(r * b - (u64)a->rb[i]);
        a->out_mb[i] = (i64)((r >> (bits - 1) ? b : 0) - (u64)a->mb[i]);
        if (a->rn) a->out_rn[i] = (i64)(r * n - (u64)a->rn[i]);
      }
    }
  }
}
