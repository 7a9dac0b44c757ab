// Vectors of `lanes` numbers in the vector extensions of GCC and Clang, conversions and functions of them. All of it is
// local to the file that includes it, since each is compiled for other instructions.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lpvit {
namespace {

constexpr float kLog2E = 1.44269504f;

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

template <int lanes>
void store(int32_t* to, IntVector<lanes> value) {
  *reinterpret_cast<IntVector<lanes>*>(to) = value;
}

// The lowest byte of each.
template <int lanes>
void store(uint8_t* to, IntVector<lanes> value) {
  using Bytes = typename VectorOf<lanes>::Bytes;
  *reinterpret_cast<Bytes*>(to) = __builtin_convertvector(value, Bytes);
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

// The numbers of a vector taken together, halves by halves.
template <int lanes, typename Combine>
float reduced(Vector<lanes> vector, Combine&& combine) {
  if constexpr (lanes == 1) {
    return vector[0];
  } else {
    float numbers[lanes];
    store<lanes>(numbers, vector);
    return reduced<lanes / 2>(combine(load<lanes / 2>(numbers), load<lanes / 2>(numbers + lanes / 2)), combine);
  }
}

// The lesser and the greater of two numbers, b where one is NaN: an instruction each, which compilers do not find.
#if defined(__x86_64__)
Vector<4> least(Vector<4> a, Vector<4> b) {
  return reinterpret_cast<Vector<4>>(_mm_min_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
}
Vector<4> greatest(Vector<4> a, Vector<4> b) {
  return reinterpret_cast<Vector<4>>(_mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
}
#if defined(__AVX2__)
Vector<8> least(Vector<8> a, Vector<8> b) {
  return reinterpret_cast<Vector<8>>(_mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
Vector<8> greatest(Vector<8> a, Vector<8> b) {
  return reinterpret_cast<Vector<8>>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
}
#endif
#if defined(__AVX512F__)
Vector<16> least(Vector<16> a, Vector<16> b) {
  return reinterpret_cast<Vector<16>>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
Vector<16> greatest(Vector<16> a, Vector<16> b) {
  return reinterpret_cast<Vector<16>>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#endif
#endif
template <typename Numbers>
Numbers least(Numbers a, Numbers b) {
  return a < b ? a : b;
}
template <typename Numbers>
Numbers greatest(Numbers a, Numbers b) {
  return a > b ? a : b;
}

constexpr auto kLess = [](auto a, auto b) { return least(a, b); };
constexpr auto kGreater = [](auto a, auto b) { return greatest(a, b); };
constexpr auto kSum = [](auto a, auto b) { return a + b; };

// Rows become columns: of blocks of `half` by `half` those beside the diagonal change places, then within all blocks.
template <int lanes, int half = lanes / 2>
void transpose(Vector<lanes> (&rows)[lanes]) {
  [&]<int... lane>(std::integer_sequence<int, lane...>) {
    LPVIT_UNROLL
    for (int i = 0; i < lanes; ++i) {
      if (i & half) continue;
      const Vector<lanes> above = rows[i], below = rows[i + half];
      rows[i] = __builtin_shufflevector(above, below, (lane & half ? lanes + lane - half : lane)...);
      rows[i + half] = __builtin_shufflevector(above, below, (lane & half ? lanes + lane : lane + half)...);
    }
  }(std::make_integer_sequence<int, lanes>{});
  if constexpr (half > 1) transpose<lanes, half / 2>(rows);
}

template <typename Number>
class Row {  // numbers in vectors, with zeros behind the last
 public:
  static constexpr int kWidth = LPVIT_LANES;
  Row(const Number* inputs, int64_t count) : inputs(inputs), count(count) {}

  Vector<kWidth> at(int64_t input) const {
    if (input + kWidth <= count) return load<kWidth>(inputs + input);
    Number rest[kWidth] = {};
    if (input < count) std::copy(inputs + input, inputs + count, rest);
    return load<kWidth>(rest);
  }

  const Number* inputs;
  const int64_t count;
};

// A polynomial of these terms, that of the highest power first.
template <int lanes, int count>
Vector<lanes> polynomial(const float (&terms)[count], Vector<lanes> x) {
  Vector<lanes> series = broadcast<lanes>(terms[0]);
  LPVIT_UNROLL
  for (int i = 1; i < count; ++i) series = series * x + terms[i];
  return series;
}

// 2^x for |x| <= 1/2: the polynomial with the smallest largest relative error, 2.2e-7 in float32 and 7.5e-5 where the
// result is rounded to bfloat16 or to 255 steps.
template <typename Number>
struct PowerOfTwo {
  static constexpr float terms[] = {5.51713221e-2f, 2.42611334e-1f, 6.93261087e-1f, 9.99928057e-1f};
};
template <>
struct PowerOfTwo<float> {
  static constexpr float terms[] = {1.3276472e-3f,  9.67554133e-3f, 5.55071327e-2f,
                                    2.40221197e-1f, 6.93146967e-1f, 1.00000007f};
};

// 2^x for x < 127, to what a kind of numbers keeps of it; 2^-126 below -126. Whole powers by the exponent's bits.
template <int lanes, typename Number>
Vector<lanes> exp2(Vector<lanes> x) {
  using Int = IntVector<lanes>;
  const Vector<lanes> bounded = kGreater(broadcast<lanes>(-126.0f), x);  // NaN stays
  const Vector<lanes> shifted = bounded + 12582912.0f;  // 3 * 2^22, at which the last bit of a float is 1
  const Vector<lanes> z = bounded - (shifted - 12582912.0f);
  const Vector<lanes> series = polynomial<lanes>(PowerOfTwo<Number>::terms, z);
  const Int power = reinterpret_cast<Int>(shifted) << 23;
  return reinterpret_cast<Vector<lanes>>(reinterpret_cast<Int>(series) + power);
}

// Phi(x) - 1/2, which is odd, over x for |x| <= `bound`, beyond which Phi is taken as 0 or 1: a polynomial in x^2 whose
// largest error, times x^2, is smallest. It is one of 2 x^2 / bound^2 - 1, whose powers do not cancel. The error of Phi
// is 1e-6 in float32, and 3.2e-5 where the outcome is rounded to bfloat16, to some 4e-3 of it.
template <typename Number>
struct NormalDistribution {
  static constexpr float bound = 5;
  static constexpr float terms[] = {4.92966852e-4f, -1.5141528e-3f,   2.00186704e-3f, -2.91567532e-3f, 6.1654241e-3f,
                                    -1.097323e-2f,  1.6497659e-2f,    -2.33367316e-2f, 3.1426229e-2f,  -4.04329494e-2f,
                                    5.15214209e-2f, -7.02966524e-2f, 1.41363823e-1f};
};
template <>
struct NormalDistribution<BFloat16> {
  static constexpr float bound = 4;
  static constexpr float terms[] = {-2.86161737e-3f, 8.52936879e-3f, -1.32299261e-2f, 2.13234033e-2f,
                                    -3.64483818e-2f, 5.60981855e-2f, -8.43629837e-2f, 1.75951958e-1f};
};

// GELU, x * Phi(x), for outputs in a kind of numbers.
template <int lanes, typename Number>
Vector<lanes> gelu(Vector<lanes> x) {
  using Phi = NormalDistribution<Number>;
  constexpr float bound = Phi::bound;
  const Vector<lanes> bounded = kLess(kGreater(x, broadcast<lanes>(-bound)), broadcast<lanes>(bound));
  const Vector<lanes> place = bounded * bounded * (2 / (bound * bound)) - 1.0f;
  return x * (bounded * polynomial<lanes>(Phi::terms, place) + 0.5f);
}

}  // namespace
}  // namespace lpvit
