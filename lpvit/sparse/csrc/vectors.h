// Vectors of `lanes` numbers in the vector extensions of GCC and Clang, conversions and functions of them. All of it is
// local to the file that includes it, since each is compiled for other instructions.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lpvit {
namespace {

// A number in memory; a bfloat16 by its bits.
using BFloat16 = uint16_t;

template <int lanes>
struct VectorOf {
  typedef float Float __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
  typedef uint16_t Half __attribute__((vector_size(2 * lanes), aligned(2), may_alias));
  typedef uint8_t Bytes __attribute__((vector_size(lanes), aligned(1), may_alias));
};
template <int lanes>
using Vector = typename VectorOf<lanes>::Float;
template <int lanes>
using IntVector = typename VectorOf<lanes>::Int;

// The loops over tokens and vectors must be unrolled: only then do the sums live in registers.
#define LPVIT_UNROLL _Pragma("GCC unroll 16")

template <int lanes>
Vector<lanes> broadcast(float value) {
  return value - Vector<lanes>{};
}

template <int lanes>
Vector<lanes> load(const float* from) {
  return *reinterpret_cast<const Vector<lanes>*>(from);
}

template <int lanes>
IntVector<lanes> load(const int32_t* from) {
  return *reinterpret_cast<const IntVector<lanes>*>(from);
}

// Neighbouring bfloat16 numbers, each in the low half of a word.
template <int lanes>
IntVector<lanes> widened(const BFloat16* from) {
#if defined(__AVX512F__)
  if constexpr (lanes == 16) {
    return reinterpret_cast<IntVector<16>>(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
#endif
#if defined(__AVX2__)
  if constexpr (lanes == 8) {
    return reinterpret_cast<IntVector<8>>(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
#endif
  if constexpr (lanes == 1) {
    return IntVector<lanes>{*from};
  } else {
    using Half = typename VectorOf<lanes>::Half;
    return __builtin_convertvector(*reinterpret_cast<const Half*>(from), IntVector<lanes>);
  }
}

template <int lanes>
Vector<lanes> load(const BFloat16* from) {
  return reinterpret_cast<Vector<lanes>>(widened<lanes>(from) << 16);
}

template <int lanes>
void store(float* to, Vector<lanes> value) {
  *reinterpret_cast<Vector<lanes>*>(to) = value;
}

float to_float(float number) { return number; }
float to_float(BFloat16 number) { return std::bit_cast<float>(uint32_t{number} << 16); }

// Rounds to the nearest bfloat16, to the even one of two, as the vector instruction does; NaN stays NaN.
BFloat16 to_bfloat16(float number) {
  const auto bits = std::bit_cast<uint32_t>(number);
  if (number != number) return bits >> 16 | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <int lanes>
void store(BFloat16* to, Vector<lanes> value) {
#ifdef __AVX512BF16__
  if constexpr (lanes == 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
    std::memcpy(to, &rounded, sizeof rounded);
    return;
  } else if constexpr (lanes == 8) {
    const __m128bh rounded = _mm256_cvtneps_pbh(reinterpret_cast<__m256>(value));
    std::memcpy(to, &rounded, sizeof rounded);
    return;
  }
#endif
  if constexpr (lanes == 1) {
    *to = to_bfloat16(value[0]);
  } else {
    using Bits = typename VectorOf<lanes>::Bits;
    using Half = typename VectorOf<lanes>::Half;
    const auto bits = reinterpret_cast<Bits>(value);
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    *reinterpret_cast<Half*>(to) = __builtin_convertvector(value == value ? rounded : quiet, Half);
  }
}

// exp(x) for x <= 0; 0 below -87. Powers of two by the exponent's bits, the rest (|z| <= ln(2) / 2) by Taylor's series.
template <int lanes>
Vector<lanes> exp_of_negative(Vector<lanes> x) {
  using Int = IntVector<lanes>;
  const Vector<lanes> bounded = x > -87.0f ? x : broadcast<lanes>(-87.0f);
  const Int power = __builtin_convertvector(bounded * 1.44269504f - 0.5f, Int);  // rounds to nearest, x being negative
  const Vector<lanes> rounded = __builtin_convertvector(power, Vector<lanes>);
  const Vector<lanes> z = bounded - rounded * 0.693359375f + rounded * 2.12194440e-4f;
  Vector<lanes> series = z * (1.0f / 720) + 1.0f / 120;
  series = series * z + 1.0f / 24;
  series = series * z + 1.0f / 6;
  series = series * z + 0.5f;
  series = series * z + 1.0f;
  series = series * z + 1.0f;
  const Int scale = (power + 127) << 23;
  return series * reinterpret_cast<Vector<lanes>>(scale);
}

// Exact GELU, x * Phi(x). Phi by Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26, on the side
// where nothing cancels: with z = |x| / sqrt(2), erfc(z) = (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z).
template <int lanes>
Vector<lanes> gelu(Vector<lanes> x) {
  const Vector<lanes> z = (x < 0.0f ? -x : x) * 0.707106781f;
  const Vector<lanes> t = 1.0f / (1.0f + 0.3275911f * z);
  Vector<lanes> series = t * 1.061405429f - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = series * t + 0.254829592f;
  const Vector<lanes> tail = 0.5f * series * t * exp_of_negative<lanes>(-z * z);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

}  // namespace
}  // namespace lpvit
