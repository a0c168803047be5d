/* Comparisons with public thresholds, and functions with a window, element by element, without branches on secrets.
   mpcformer/ring/windows.py loads these functions from the same compiled file as those of kernels.c. What they compute
   is written down, in torch, in mpcformer/protocols/comparison.py and window.py and mpcformer/correlations/window.py. */

#include <stdint.h>

typedef int64_t i64;
typedef uint64_t u64;

#define CHUNK_BITS 6
#define MAX_CHUNKS 4
#define N_BYTES 16 /* of a word that picks one of 128 bins */
#define POWER_SCALE 20
#define PART_BITS 8

static inline u64 low_bits(u64 x, i64 bits, i64 compared) {
  i64 spare = bits - 1 - compared;
  u64 low = x & (((u64)1 << (bits - 1)) - 1);
  return spare >= 0 ? low >> spare : low << -spare;
}

/* A share shifted down, as mpcformer.protocols.party.shift does it. */
static inline u64 shifted(u64 x, i64 down, i64 rank) {
  return down > 0 ? (u64)((i64)x >> down) + (rank == 0) : x << -down;
}

/* Of Comparisons.inputs: `offsets` are the thresholds plus 2^(bits - 2); `local` gets a bit for each threshold. */
void mpcformer_windows_inputs(i64 n, i64 n_thresholds, const i64 *offsets, i64 bits, i64 n_chunks, i64 input_bits,
                              i64 rank, const i64 *c, const i64 *words, const i64 *top, const i64 *masks, i64 *inputs,
                              i64 *local) {
  const u64 mask = ((u64)1 << bits) - 1, first = rank == 0;
  const i64 compared = n_chunks * CHUNK_BITS;
  for (i64 i = 0; i < n; i++) {
    u64 found = 0, own_bits = 0;
    for (i64 t = 0; t < n_thresholds; t++) {
      u64 d = ((u64)c[i] - (u64)offsets[t]) & mask, low = low_bits(d, bits, compared), less[MAX_CHUNKS], bit = 0;
      for (i64 j = n_chunks - 1; j >= 0; j--) {
        u64 word = (u64)words[j * n + i], place = (low >> (CHUNK_BITS * j)) & ((1 << CHUNK_BITS) - 1);
        less[j] = (word >> place) & 1;
        if (j > 0) found |= (((((word << 1) | first) >> place) & 1) ^ less[j]) << (input_bits * t + bit++);
      }
      for (i64 j = n_chunks - 2; j >= 0; j--) found |= less[j] << (input_bits * t + bit++);
      u64 own = less[n_chunks - 1] ^ ((u64)top[i] & 1);
      if (first) own ^= 1 ^ (d >> (bits - 1));
      own_bits |= own << t;
    }
    inputs[i] = (i64)(found ^ (u64)masks[i]);
    local[i] = (i64)own_bits;
  }
}

/* Of Comparisons.reached: a bit for each threshold. `products` has a word of n elements for `per_word` thresholds each. */
void mpcformer_windows_reached(i64 n, i64 n_thresholds, i64 n_inputs, i64 input_bits, i64 product_bits, i64 per_word,
                               i64 rank, const i64 *opened, const i64 *masks, const i64 *products, const i64 *selected,
                               const i64 *constant, const i64 *local, i64 *out) {
  const u64 inputs = ((u64)1 << n_inputs) - 1, product_mask = ((u64)1 << product_bits) - 1;
  for (i64 i = 0; i < n; i++) {
    u64 found = (u64)local[i];
    for (i64 t = 0; t < n_thresholds; t++) {
      u64 value = ((u64)opened[i] >> (input_bits * t)) & inputs, mask = ((u64)masks[i] >> (input_bits * t)) & inputs;
      u64 product = ((u64)products[(t / per_word) * n + i] >> (product_bits * (t % per_word))) & product_mask;
      u64 word = (mask | (product << n_inputs)) & (u64)selected[value];
      for (int by = 32; by > 0; by >>= 1) word ^= word >> by;
      found ^= ((word & 1) ^ (rank == 0 ? (u64)constant[value] : 0)) << t;
    }
    out[i] = (i64)found;
  }
}

typedef struct {
  i64 n, rank, bits, log_width, bin_bits, down;
  const i64 *c, *low_words, *high_words, *values, *slopes, *fine, *coarse;
  i64 *value, *slope;
} Pick;

/* Of the functions' `picked`: lines if there are slopes, else an exponential. Tables have 256 sums for each byte. */
void mpcformer_windows_pick(const Pick *a) {
  const u64 window = ((u64)1 << a->log_width) - 1, bin = ((u64)1 << a->bin_bits) - 1;
  const u64 start = ((u64)1 << (a->log_width - 1)) - ((u64)1 << (a->bits - 2));
  for (i64 i = 0; i < a->n; i++) {
    u64 turned = ((u64)a->c[i] + start) & window, low = turned & bin, turn = turned >> a->bin_bits;
    u64 one = (u64)a->low_words[i], two = (u64)a->high_words[i], swap = -(turn >> 6), by = turn & 63;
    u64 first = (one & ~swap) | (two & swap), second = (two & ~swap) | (one & swap);
    u64 words[2] = {(first << by) | ((second >> 1) >> (63 - by)), (second << by) | ((first >> 1) >> (63 - by))};
    u64 value = 0, slope = 0;
    for (i64 byte = 0; byte < N_BYTES; byte++) {
      u64 at = 256 * byte + ((words[byte / 8] >> (8 * (byte % 8))) & 255);
      value += (u64)a->values[at];
      if (a->slopes) slope += (u64)a->slopes[at];
    }
    if (a->slopes) {
      value += slope * low;
      a->slope[i] = (i64)(a->rank ? -slope : slope);
    } else {
      u64 power = (u64)a->fine[low & ((1 << PART_BITS) - 1)] * (u64)a->coarse[low >> PART_BITS];
      value *= (power + ((u64)1 << (POWER_SCALE - 1))) >> POWER_SCALE;
    }
    a->value[i] = (i64)shifted(a->rank ? -value : value, a->slopes ? a->down : POWER_SCALE, a->rank);
  }
}

enum { Q = 0, MASKS = 1, VALUE_HIGH = 2, Q_LOW = 3, SLOPE_HIGH = 4, N_LINE = 5 };

typedef struct {
  i64 n, rank, bits, down, value_bits, slope_bits, below, constant, factor;
  const i64 *c, *r, *chosen, *value, *slope, *always[N_LINE], *masked[N_LINE], *counted, *above, *r_above, *top_above;
  const i64 *carry, *top;
  i64 *out;
} Sum;

static inline u64 inner(const Sum *a, const i64 *const *with, i64 i, u64 value, u64 value_wraps, u64 slope,
                        u64 slope_wraps) {
  u64 found = value * (u64)with[Q][i] - (u64)with[MASKS][i] + value_wraps * (u64)with[VALUE_HIGH][i];
  if (a->slope) found -= slope * (u64)with[Q_LOW][i] + slope_wraps * (u64)with[SLOPE_HIGH][i];
  return found;
}

/* Of Evaluation._combine. `counted` is given if the value below the window is to be taken away inside it. */
void mpcformer_windows_sum(const Sum *a) {
  const u64 first = a->rank == 0;
  for (i64 i = 0; i < a->n; i++) {
    u64 inside = (u64)a->chosen[i] & 1, is_above = ((u64)a->chosen[i] >> 1) & 1;
    u64 opened = (u64)a->value[i], value = (opened - ((u64)1 << (a->value_bits - 2))) << a->down;
    u64 value_wraps = (1 - (opened >> (a->value_bits - 1))) << (a->down + a->value_bits), slope = 0, slope_wraps = 0;
    if (a->slope) {
      opened = (u64)a->slope[i];
      slope = opened - ((u64)1 << (a->slope_bits - 2));
      slope_wraps = (1 - (opened >> (a->slope_bits - 1))) << a->slope_bits;
    }
    u64 total = first * (u64)a->below + inside * inner(a, a->always, i, value, value_wraps, slope, slope_wraps) +
                (1 - 2 * inside) * inner(a, a->masked, i, value, value_wraps, slope, slope_wraps);
    if (a->counted) total -= (u64)a->below * (first * inside + (1 - 2 * inside) * (u64)a->counted[i]);
    if (a->r_above) {
      u64 no_top = 1 - ((u64)a->c[i] >> (a->bits - 1)), open = (u64)a->c[i] - ((u64)1 << (a->bits - 2));
      u64 x = first * open - (u64)a->r[i] + (((u64)a->carry[i] + (u64)a->top[i] * no_top) << a->bits);
      u64 rho = (u64)a->r_above[i] - (((u64)a->top_above[i] * no_top) << a->bits);
      total += (u64)a->factor * (is_above * x + (1 - 2 * is_above) * (open * (u64)a->above[i] - rho));
    }
    total += (u64)a->constant * (first * is_above + (1 - 2 * is_above) * (u64)a->above[i]);
    a->out[i] = (i64)total;
  }
}

typedef struct {
  i64 n, bits, bin_bits, n_chunks, n_inputs, input_bits, product_bits, down, value_bits, slope_bits, counted, degree;
  const i64 *mask_products, *fine, *coarse, *share_0[5], *share_1[24];
  i64 *out[24];
} Correct;

/* Of Window.correct: `share_1` and `out` are in the order of the kind's tensors, whole words one after the other. */
void mpcformer_windows_correct(const Correct *a) {
  const i64 n = a->n, n_drawn = a->slope_bits ? 5 : 4;
  const u64 value_mask = ((u64)1 << a->value_bits) - 1, slope_mask = a->slope_bits ? ((u64)1 << a->slope_bits) - 1 : 0;
  const i64 *const *rest = a->share_1 + n_drawn;
  for (i64 i = 0; i < n; i++) {
    u64 total = (u64)a->share_0[0][i] + (u64)a->share_1[0][i], r = total & (((u64)1 << a->bits) - 1);
    u64 inputs = (u64)a->share_0[1][i] ^ (u64)a->share_1[1][i], chosen = (u64)a->share_0[2][i] ^ (u64)a->share_1[2][i];
    u64 mask = ((u64)a->share_0[3][i] + (u64)a->share_1[3][i]) & value_mask, slope = 0;
    if (a->slope_bits) slope = ((u64)a->share_0[4][i] + (u64)a->share_1[4][i]) & slope_mask;
    u64 top = r >> (a->bits - 1), low = low_bits(r, a->bits, a->n_chunks * CHUNK_BITS);
    for (i64 j = 0; j < a->n_chunks; j++) {
      u64 chunk = (low >> (CHUNK_BITS * j)) & ((1 << CHUNK_BITS) - 1);
      a->out[0][j * n + i] = (i64)((((u64)1 << chunk) - 1) ^ (u64)rest[0][j * n + i]);
    }
    u64 products = 0;
    for (i64 t = 0; t < 2; t++) {
      u64 at = (inputs >> (a->input_bits * t)) & (((u64)1 << a->n_inputs) - 1);
      products |= (u64)a->mask_products[at] << (a->product_bits * t);
    }
    a->out[1][i] = (i64)(products ^ (top << (a->product_bits - 1)) ^ (u64)rest[1][i]);
    u64 place = -(r >> a->bin_bits) & 127, bit = (u64)1 << (place & 63), second = -(place >> 6);
    u64 words[2] = {bit & ~second, bit & second};
    u64 hit = ((u64)rest[2][i] & words[0]) | ((u64)rest[2][n + i] & words[1]);
    a->out[2][i] = (i64)(words[0] ^ (u64)rest[2][i]);
    a->out[2][n + i] = (i64)(words[1] ^ (u64)rest[2][n + i]);

    u64 w = 1 - 2 * (u64)(hit != 0), inside = chosen & 1, above = (chosen >> 1) & 1;
    u64 in_bin = r & (((u64)1 << a->bin_bits) - 1);
    if (!a->slope_bits) {
      u64 power = (u64)a->fine[in_bin & ((1 << PART_BITS) - 1)] * (u64)a->coarse[in_bin >> PART_BITS];
      w *= (power + ((u64)1 << (POWER_SCALE - 1))) >> POWER_SCALE;
    }
    i64 at = 3;
#define PUT(number) a->out[at][i] = (i64)((number) - (u64)rest[at][i]), at++
    for (i64 part = 0; part < 2; part++) {
      u64 q = part ? w * inside : w, q_low = q * in_bin;
      PUT(q);
      PUT(a->slope_bits ? ((q * mask) << a->down) - q_low * slope : q * mask);
      PUT(q * (mask >> (a->value_bits - 1)));
      if (a->slope_bits) {
        PUT(q_low);
        PUT(q_low * (slope >> (a->slope_bits - 1)));
      }
    }
    if (a->counted) PUT(inside);
    PUT(above);
    if (a->degree) {
      PUT(r * above);
      PUT(top * above);
      PUT((u64)((i64)total >> a->bits));
      PUT(top);
    }
#undef PUT
  }
}
