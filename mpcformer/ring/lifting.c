/* Lifted openings: what mpcformer/protocols/lifted.py computes of an opened number, and what the dealer adds to it.

   mpcformer/ring/lifting.py loads these functions from the same compiled file as those of kernels.c. Each of them is
   one pass over its arrays. */

#include <stdint.h>

typedef int64_t i64;
typedef uint64_t u64;

#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_AVX2 __attribute__((target("avx2")))
#else
#define FOR_AVX2
#endif

/* ---- openings ------------------------------------------------------------------------------------------------------ */

/* The arguments. Numbers are those of `Opened`: c is opened in [0, 2^bits), and lift is the width of the large ring.
   Arrays have rows x width elements; those of rows alone are wanted for a product with a factor: its public part, eta,
   and whether its mask may have wrapped. A result is shifted `down` bits, as `shift` does it for the owner `rank`; up if `down`
   is negative. */
typedef struct {
  i64 rows, width, bits, lift, rank, offset, down;
  const i64 *c, *r, *carry, *m, *rm, *squares, *rb, *mb, *rn, *factor, *eta, *wrapped;
  i64 *out;
} Lift;

enum { VALUE = 0, SQUARE = 1, LENGTH = 2, TIMES = 3 };

static inline i64 shifted(u64 value, i64 down, i64 rank) {
  return down > 0 ? ((i64)value >> down) + (rank == 0) : (i64)(value << -down);
}

/* `use` and `rank` are constants where this is called, so that a loop has no branches. */
static inline __attribute__((always_inline)) void lifted(const Lift *a, int use, int rank) {
  const u64 low = (u64)1 << (a->bits - 2);
  const i64 bits = a->bits, twice = 2 * a->bits < a->lift ? 2 * a->bits : -1, width = a->width, down = a->down;
  for (i64 row = 0; row < a->rows; row++) {
    u64 total = 0, factor = 0, eta = 0, wrapped = 0;
    if (use == TIMES) factor = (u64)a->factor[row], eta = (u64)a->eta[row], wrapped = (u64)a->wrapped[row];
    for (i64 i = row * width; i < (row + 1) * width; i++) {
      u64 no_msb = ((u64)a->c[i] >> (bits - 1)) - 1; /* all ones where the top bit is zero */
      u64 wrap = (u64)a->m[i] & no_msb, open = (u64)a->c[i] - low;
      u64 rho = (u64)a->r[i] - (((u64)a->carry[i] + wrap) << bits), value;
      if (use == VALUE) {
        value = (rank == 0 ? open : 0) - rho;
      } else if (use == TIMES) {
        u64 product = (u64)a->rb[i] - (((u64)a->mb[i] & no_msb) << bits);
        if (a->rn) product -= ((u64)a->rn[i] * wrapped) << 40;
        value = (rank == 0 ? open * factor : 0) - open * eta - rho * factor + product;
      } else {
        u64 beyond = (twice < 0 ? 0 : wrap << twice) - (((u64)a->rm[i] & no_msb) << (bits + 1));
        open += (u64)a->offset;
        value = (rank == 0 ? open * open : 0) - 2 * open * rho + beyond;
        if (use == SQUARE) value += (u64)a->squares[i];
      }
      if (use == LENGTH)
        total += value;
      else
        a->out[i] = shifted(value, down, rank);
    }
    if (use == LENGTH) a->out[row] = (i64)(total + (u64)a->squares[row]);
  }
}

FOR_AVX2 int mpcformer_lifting_open(int use, const Lift *a) {
#define EITHER(name)                                                                                                   \
  case name:                                                                                                           \
    if (a->rank == 0)                                                                                                  \
      lifted(a, name, 0);                                                                                              \
    else                                                                                                               \
      lifted(a, name, 1);                                                                                              \
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
