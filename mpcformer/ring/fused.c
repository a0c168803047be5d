/* Elementwise computations in one pass over memory: a part of the elements goes through all steps while it is in the
   processor's nearest cache.

   mpcformer/ring/fused.py loads this function from the same compiled file as those of kernels.c. */

#include "packing.h"

#define PART 1024
#define N_SIZES 4

/* fused.py knows these. A step changes the numbers in hand: SET, ADD and SUBTRACT take operands that are shifted right
   by `number` bits (left if it is negative), MULTIPLY takes them as they are; the packed ones are of `number` bits.
   The last two need no operand: they add the number, or shift by it. */
enum { SET = 0, ADD = 1, SUBTRACT = 2, MULTIPLY = 3, SET_PACKED = 4, ADD_PACKED = 5, ADD_NUMBER = 6, SHIFT = 7 };

/* Strides count elements, for each of the sizes; those of packed operands mean nothing. */
typedef struct {
  i64 kind, number;
  const void *at;
  i64 strides[N_SIZES];
} Step;

/* All results but `bits`, the width of the packed ones, may be null. `opened` is the sum with `theirs`, which is packed
   too, modulo 2^bits. fused.py writes all of it as words. */
typedef struct {
  i64 sizes[N_SIZES], n_steps, bits;
  u8 *packed;
  i64 *stored;
  const u8 *theirs;
  i64 *opened;
  Step steps[];
} Fused;
_Static_assert(sizeof(void *) == sizeof(i64), "pointers are words");

INLINE i64 shifted(i64 x, i64 down) { return down >= 0 ? x >> down : (i64)((u64)x << -down); }

/* Let `count` operands that lie `stride` elements apart meet the numbers in hand. */
INLINE void meet(int kind, i64 *hand, const i64 *x, i64 stride, i64 count, i64 down) {
  for (i64 i = 0; i < count; i++) {
    u64 y = (u64)shifted(x[i * stride], down);
    if (kind == SET) hand[i] = (i64)y;
    if (kind == ADD) hand[i] = (i64)((u64)hand[i] + y);
    if (kind == SUBTRACT) hand[i] = (i64)((u64)hand[i] - y);
    if (kind == MULTIPLY) hand[i] = (i64)((u64)hand[i] * y);
  }
}

/* The same, with the cases apart that a compiler makes fast. */
INLINE void meet_run(int kind, i64 *hand, const i64 *x, i64 stride, i64 count, i64 down) {
  if (stride == 1 && down == 0)
    meet(kind, hand, x, 1, count, 0);
  else if (stride == 1 && down > 0)
    meet(kind, hand, x, 1, count, down);
  else if (stride == 0)
    meet(kind, hand, x, 0, count, down);
  else
    meet(kind, hand, x, stride, count, down);
}

INLINE void meet_operand(int kind, const Fused *f, const Step *step, i64 *hand, i64 from, i64 to) {
  const i64 *size = f->sizes, *stride = step->strides;
  i64 at[N_SIZES], rest = from;
  for (int d = N_SIZES - 1; d >= 0; d--) at[d] = rest % size[d], rest /= size[d];
  for (i64 count; from < to; from += count, hand += count) {
    const i64 *x = (const i64 *)step->at + at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2] + at[3] * stride[3];
    count = size[3] - at[3] < to - from ? size[3] - at[3] : to - from;
    meet_run(kind, hand, x, stride[3], count, step->number);
    at[3] = 0;
    for (int d = N_SIZES - 2; d >= 0 && ++at[d] == size[d]; d--) at[d] = 0;
  }
}

INLINE void meet_packed(const u8 *bytes, i64 n, int bits, int is_added, i64 *hand, i64 from, i64 to) {
  const Planes p = planes_of(bytes, n, bits);
  EACH_ELEMENT(p, from, to, bits, hand[i - from] = (i64)(x + (is_added ? (u64)hand[i - from] : 0)));
}

INLINE void open_part(const u8 *bytes, i64 n, int bits, const i64 *hand, i64 from, i64 to, i64 *out) {
  const Planes p = planes_of(bytes, n, bits);
  const u64 mask = ((u64)1 << bits) - 1;
  EACH_ELEMENT(p, from, to, bits, out[i] = (i64)((x + (u64)hand[i - from]) & mask));
}

static int is_width(i64 bits) { return bits >= 4 && bits <= 60 && bits % 4 == 0; }

/* One step for a part of the elements. Returns 1 if there is no such step. */
FOR_AVX2 static int take_step(const Fused *f, const Step *step, i64 n, i64 *hand, i64 from, i64 to) {
  switch (step->kind) {
#define OPERAND(kind)                                                                                                  \
  case kind:                                                                                                           \
    meet_operand(kind, f, step, hand, from, to);                                                                       \
    return 0;
    OPERAND(SET)
    OPERAND(ADD)
    OPERAND(SUBTRACT)
    OPERAND(MULTIPLY)
    case SET_PACKED:
    case ADD_PACKED:
      switch (step->number) {
#define PACKED(width)                                                                                                  \
  case width:                                                                                                          \
    if (step->kind == ADD_PACKED)                                                                                      \
      meet_packed(step->at, n, width, 1, hand, from, to);                                                              \
    else                                                                                                               \
      meet_packed(step->at, n, width, 0, hand, from, to);                                                              \
    return 0;
        EACH_WIDTH(PACKED)
      }
      return 1;
    case ADD_NUMBER:
      for (i64 i = 0; i < to - from; i++) hand[i] = (i64)((u64)hand[i] + (u64)step->number);
      return 0;
    case SHIFT:
      if (step->number >= 0)
        for (i64 i = 0; i < to - from; i++) hand[i] >>= step->number;
      else
        for (i64 i = 0; i < to - from; i++) hand[i] = (i64)((u64)hand[i] << -step->number);
      return 0;
  }
  return 1;
}

FOR_AVX2 static void give(const Fused *f, i64 n, const i64 *hand, i64 from, i64 to) {
  if (f->stored) memcpy(f->stored + from, hand, (size_t)(to - from) * sizeof *hand);
  if (!f->packed && !f->opened) return;
  switch (f->bits) {
#define GIVE(width)                                                                                                    \
  case width:                                                                                                          \
    if (f->packed) {                                                                                                   \
      const Planes p = planes_of(f->packed, n, width);                                                                 \
      write_elements(&p, hand, from, to, width);                                                                       \
    }                                                                                                                  \
    if (f->opened) open_part(f->theirs, n, width, hand, from, to, f->opened);                                          \
    break;
    EACH_WIDTH(GIVE)
  }
}

/* Returns 0, or 1 if there is no such step or width. */
FOR_AVX2 int mpcformer_fused_run(const Fused *f) {
  const i64 n = f->sizes[0] * f->sizes[1] * f->sizes[2] * f->sizes[3];
  i64 hand[PART];
  if ((f->packed || f->opened) && !is_width(f->bits)) return 1;
  for (i64 from = 0; from < n; from += PART) {
    const i64 to = n - from < PART ? n : from + PART;
    for (i64 s = 0; s < f->n_steps; s++)
      if (take_step(f, &f->steps[s], n, hand, from, to)) return 1;
    give(f, n, hand, from, to);
  }
  return 0;
}
