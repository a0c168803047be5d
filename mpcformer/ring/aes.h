/* The key schedule of AES-128, and what a processor has of AES, for those of these files that encrypt. */

/* aes.py knows these: the instructions for a block, and those for four blocks at once. */
enum { NONE = 0, AES = 1, VAES = 2 };

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AES
#include <immintrin.h>

#define FOR_AES __attribute__((target("avx2,aes")))
#define FOR_VAES __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,aes,vaes")))
/* Older compilers do not know this name of a processor's feature. */
#if defined(__clang__) || __GNUC__ >= 11
#define HAS_VAES() __builtin_cpu_supports("vaes")
#else
#define HAS_VAES() 0
#endif
#define ROUNDS 10

static int aes_level(void) {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("aes")) return NONE;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vl") && HAS_VAES()
             ? VAES
             : AES;
}

FOR_AES static __m128i next_key(__m128i key, __m128i assisted) {
  assisted = _mm_shuffle_epi32(assisted, 0xFF);
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
  return _mm_xor_si128(key, assisted);
}

FOR_AES static void set_key(__m128i *k, const void *key) {
  k[0] = _mm_loadu_si128((const __m128i *)key);
#define NEXT(i, constant) k[i] = next_key(k[i - 1], _mm_aeskeygenassist_si128(k[i - 1], constant));
  NEXT(1, 0x01) NEXT(2, 0x02) NEXT(3, 0x04) NEXT(4, 0x08) NEXT(5, 0x10)
  NEXT(6, 0x20) NEXT(7, 0x40) NEXT(8, 0x80) NEXT(9, 0x1B) NEXT(10, 0x36)
#undef NEXT
}

#endif
