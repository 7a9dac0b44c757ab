// Arithmetic of kernel.cpp in int8: inputs are quantised token by token as they are copied, sums are exact in int32.
//
// x = s (q - z) with q in 0 ... 255 and z, the zero point, such that the smallest and the largest input of the token (and
// 0) are met; w = a v with v in -127 ... 127 and a scale a for each output. So
//   sum of x w = s a (sum of q v - z sum of v),
// where the last sum, of an output's weights, is known beforehand.
#pragma once

#include <limits>

#include "norm.h"

namespace lpvit {
namespace {

using Weight = int8_t;
using Input = uint8_t;  // in a panel; where the instruction takes signed ones, with kShift taken off

constexpr int kStep = 4;         // inputs of a token that are multiplied at once
constexpr int kInterleaved = 4;  // columns whose weights alternate in memory
constexpr int64_t kDepth = std::numeric_limits<int32_t>::max();
constexpr float kSmallestRange = 1e-30f;  // of what is quantised; smaller ones count as zeros

#if defined(__ARM_FEATURE_DOTPROD)
constexpr int kShift = 128;
#else
constexpr int kShift = 0;
#endif

template <int lanes>
using Sum = IntVector<lanes>;

// What is to be known of one to read its quantised inputs.
struct Token {
  float scale;
  int32_t offset;  // less the zero point
};

// Bytes of four columns for each output; the words of a vector.
template <int lanes>
IntVector<lanes> load_weights(const int8_t* columns, int64_t) {
  IntVector<lanes> words;
  std::memcpy(&words, columns, sizeof words);
  return words;
}

template <int lanes>
IntVector<lanes> multiply_add(const uint8_t* x, IntVector<lanes> weights, IntVector<lanes> sum) {
  int32_t word;
  std::memcpy(&word, x, sizeof word);
#if defined(__AVX512VNNI__)
  if constexpr (lanes == 16) {
    return reinterpret_cast<IntVector<16>>(_mm512_dpbusd_epi32(
        reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(word), reinterpret_cast<__m512i>(weights)));
  }
#endif
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
  if constexpr (lanes == 8) {
    return reinterpret_cast<IntVector<8>>(_mm256_dpbusd_epi32(
        reinterpret_cast<__m256i>(sum), _mm256_set1_epi32(word), reinterpret_cast<__m256i>(weights)));
  }
#elif defined(__AVX2__)
  // Products of bytes do not fit the saturating 16-bit sums of vpmaddubsw: even and odd columns as 16-bit numbers.
  if constexpr (lanes == 8) {
    const auto inputs = _mm256_set1_epi32(word), columns = reinterpret_cast<__m256i>(weights);
    const auto even = _mm256_madd_epi16(_mm256_and_si256(inputs, _mm256_set1_epi32(0x00ff00ff)),
                                        _mm256_srai_epi16(_mm256_slli_epi16(columns, 8), 8));
    const auto odd = _mm256_madd_epi16(_mm256_srli_epi16(inputs, 8), _mm256_srai_epi16(columns, 8));
    return sum + reinterpret_cast<IntVector<8>>(_mm256_add_epi32(even, odd));
  }
#elif defined(__ARM_FEATURE_DOTPROD)
  if constexpr (lanes == 4) {
    return reinterpret_cast<IntVector<4>>(vdotq_s32(reinterpret_cast<int32x4_t>(sum),
                                                    reinterpret_cast<int8x16_t>(weights),
                                                    vreinterpretq_s8_s32(vdupq_n_s32(word))));
  }
#endif
  LPVIT_UNROLL
  for (int i = 0; i < kStep; ++i) {
    const int32_t input = kShift ? static_cast<int8_t>(x[i]) : x[i];
    sum += input * (weights << (24 - 8 * i) >> 24);
  }
  return sum;
}

// Where the sums of some outputs begin, and what they become.
template <int floats>
class Constants {
 public:
  Constants(const Problem& p, int64_t first, int64_t count) : scales(p.scales + first), row_sums(p.row_sums + first) {
    if (p.bias) bias = static_cast<const float*>(p.bias) + first;
    if (count < floats) {  // no reading past the last output
      scales = std::copy_n(scales, count, padded[0]) - count;
      bias = std::copy_n(bias, count, padded[1]) - count;
      row_sums = std::copy_n(row_sums, count, padded_sums) - count;
      std::fill(padded_sums + count, padded_sums + floats, 0);  // what is multiplied for nothing may not overflow
    }
  }
  template <int lanes>
  auto start_of(int output) const {
    const auto sums = load<lanes>(row_sums + output);
    return [sums](const Token& token) __attribute__((always_inline)) { return token.offset * sums; };
  }
  template <int lanes>
  auto finish_of(int output) const {
    const auto factors = load<lanes>(scales + output), start = load<lanes>(bias + output);
    return [factors, start](const Token& token, Sum<lanes> sum) __attribute__((always_inline)) {
      return __builtin_convertvector(sum, Vector<lanes>) * token.scale * factors + start;
    };
  }

 private:
  static constexpr float kZeros[floats] = {};
  const float *scales, *bias = kZeros;
  const int32_t* row_sums;
  float padded[2][floats];
  int32_t padded_sums[floats];
};

template <int floats>
Constants<floats> constants_of(const Problem& p, int64_t first, int64_t count) {
  return {p, first, count};
}

// To the nearest integer, to the even one of two.
template <int lanes>
IntVector<lanes> rounded(Vector<lanes> value) {
#if defined(__x86_64__)
  if constexpr (lanes == 4) return reinterpret_cast<IntVector<4>>(_mm_cvtps_epi32(reinterpret_cast<__m128>(value)));
#if defined(__AVX2__)
  if constexpr (lanes == 8) return reinterpret_cast<IntVector<8>>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(value)));
#endif
#if defined(__AVX512F__)
  if constexpr (lanes == 16) {
    return reinterpret_cast<IntVector<16>>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(value)));
  }
#endif
#elif defined(__aarch64__)
  if constexpr (lanes == 4) {
    return reinterpret_cast<IntVector<4>>(vcvtnq_s32_f32(reinterpret_cast<float32x4_t>(value)));
  }
#endif
}

// The range of some inputs and 0, and whether all are finite.
template <int lanes>
struct Range {
  Vector<lanes> least = {}, greatest = {}, zeros = {};

  void take(Vector<lanes> x) {
    least = kLess(x, least);
    greatest = kGreater(x, greatest);
    zeros += x * 0.0f;  // or NaN
  }
};

// How a token is quantised.
struct Levels {
  float scale, reciprocal;
  int32_t zero_point;
};

// Levels for the range of the inputs and 0; the scale is NaN if one of them is not finite.
template <typename Number>
Levels levels_of(const Row<Number>& row) {
  constexpr int lanes = Row<Number>::kWidth;
  Range<lanes> range;
  int64_t i = 0;
  for (; i + lanes <= row.count; i += lanes) range.take(load<lanes>(row.inputs + i));
  if (i < row.count) range.take(row.at(i));
  const float low = reduced<lanes>(range.least, kLess), high = reduced<lanes>(range.greatest, kGreater);
  const float zero = reduced<lanes>(range.zeros, kSum);
  const float reciprocal = high - low > kSmallestRange ? 255.0f / (high - low) : 0.0f;
  return {(high - low) / 255.0f + zero, reciprocal, rounded<lanes>(broadcast<lanes>(-low * reciprocal))[0]};
}

// Quantises the inputs of a token, vector by vector: put(i, bytes) takes those from the i-th on.
template <typename Number, typename Put>
void quantise(const Row<Number>& row, const Levels& levels, int64_t padded, Put&& put) {
  constexpr int lanes = Row<Number>::kWidth;
  const auto quantised = [&](Vector<lanes> x) {
    const IntVector<lanes> q = rounded<lanes>(x * levels.reciprocal) + levels.zero_point;
    const IntVector<lanes> bounded = q > 255 ? IntVector<lanes>{} + 255 : q;
    return __builtin_convertvector(bounded - kShift, typename VectorOf<lanes>::Bytes);
  };
  int64_t i = 0;
  for (; i + lanes <= row.count; i += lanes) put(i, quantised(load<lanes>(row.inputs + i)));
  for (; i < padded; i += lanes) put(i, quantised(row.at(i)));
}

// Quantises a token into its row of a panel.
template <typename Number>
Token quantise_to_row(const Problem& p, const Row<Number>& row, int64_t tokens, int64_t padded, uint8_t* to) {
  using Bytes = typename VectorOf<Row<Number>::kWidth>::Bytes;
  const int64_t width = p.block_columns, stored = stored_columns(p, kStep);
  const Levels levels = levels_of(row);
  const auto place = [&](int64_t i) { return to + i / 64 * (tokens * 64) + i % 64; };
  if (width == stored) {
    quantise(row, levels, padded, [&](int64_t i, Bytes bytes) { *reinterpret_cast<Bytes*>(place(i)) = bytes; });
  } else {  // a block is wider in the panel than in the inputs
    for (int64_t i = 0; i < padded; ++i) *place(i) = 0;
    quantise(row, levels, p.in_features, [&](int64_t i, Bytes bytes) {
      const int64_t last = std::min<int64_t>(p.in_features - i, Row<Number>::kWidth);
      for (int64_t j = 0; j < last; ++j) *place((i + j) / width * stored + (i + j) % width) = bytes[j];
    });
  }
  return {levels.scale, kShift - levels.zero_point};
}

template <typename Number>
void quantise_to_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t padded, uint8_t* panel,
                       Token* of_tokens) {
  auto normalised = room_for_norm<Number>(p);
  for (int64_t t = 0; t < tokens; ++t) {
    const Row<Number> row(static_cast<const Number*>(p.inputs) + (first_token + t) * p.in_features, p.in_features);
    if (p.norm_weight) {
      normalise(p, row, normalised.data());
      const Row<float> of_floats(normalised.data(), p.in_features);
      of_tokens[t] = quantise_to_row(p, of_floats, tokens, padded, panel + t * 64);
    } else {
      of_tokens[t] = quantise_to_row(p, row, tokens, padded, panel + t * 64);
    }
  }
}

void fill_panel(const Problem& p, int64_t first_token, int64_t tokens, int64_t, int64_t, int64_t padded,
                uint8_t* panel, Token* of_tokens) {
  const auto fill = p.bfloat16 ? quantise_to_panel<BFloat16> : quantise_to_panel<float>;
  fill(p, first_token, tokens, padded, panel, of_tokens);
}

// Calls a function with the outputs in their type.
template <typename Function>
void with_outputs(const Problem& p, Function&& function) {
  if (p.bfloat16) {
    function(static_cast<BFloat16*>(p.outputs));
  } else {
    function(static_cast<float*>(p.outputs));
  }
}

}  // namespace
}  // namespace lpvit
