// What the programs share: a problem comes from standard input, piece by piece.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

template <typename T>
std::vector<T> take(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != static_cast<size_t>(count)) std::exit(2);
  return values;
}
