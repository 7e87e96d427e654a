// The kernels of a training step on a CPU: selection, reconstruction with its gradient, and the fused update.
// Plain C interface; all tensors are contiguous and row-major. The Python side is kernels.py beside this file, whose
// docstrings give shapes; the definitions are those of visae/ops/reference.py.
// Every sum runs in an order that does not depend on the number of threads, so results repeat bit by bit.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

namespace {

inline float widen(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float widen(float x) { return x; }

// What entries are ranked by: the value with its bias, or the size of that.
template <class Raw, bool by_size>
struct Key {
  static float of(Raw x, float bias) {
    float y = widen(x) + bias;
    return by_size ? std::fabs(y) : y;
  }
};

struct Candidate {
  float key;
  int32_t column;
};

constexpr int64_t BLOCK = 64;
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

// Maxima of blocks of `block` columns; the last block may be short.
template <class K, class Raw>
void block_maxima(const Raw* row, const float* bias, int64_t width, int64_t block, float* maxima) {
  for (int64_t b = 0; b * block < width; ++b) {
    int64_t start = b * block, size = std::min(block, width - start);
    float best = LOWEST;
    if (size == BLOCK) {  // a constant length vectorises without a remainder
#pragma omp simd reduction(max : best)
      for (int64_t i = 0; i < BLOCK; ++i) {
        float key = K::of(row[start + i], bias[start + i]);
        best = key > best ? key : best;
      }
    } else {
      for (int64_t i = 0; i < size; ++i) best = std::max(best, K::of(row[start + i], bias[start + i]));
    }
    maxima[b] = best;
  }
}

// Columns of one row whose key is at least `cut`, looked for only in blocks whose maximum is.
template <class K, class Raw>
int64_t collect(const Raw* row, const float* bias, int64_t width, int64_t block, const float* maxima, float cut,
                Candidate* found) {
  int64_t count = 0;
  float keys[BLOCK];
  uint8_t hits[BLOCK] = {};  // a short last block leaves zeros behind its end
  for (int64_t b = 0; b * block < width; ++b) {
    if (!(maxima[b] >= cut)) continue;
    int64_t start = b * block, size = std::min(block, width - start);
    if (size < BLOCK) std::memset(hits, 0, BLOCK);
    for (int64_t i = 0; i < size; ++i) {
      keys[i] = K::of(row[start + i], bias[start + i]);
      hits[i] = keys[i] >= cut;
    }
    for (int64_t word = 0; word < BLOCK; word += 8) {  // eight flags at a time: nearly all are zero
      uint64_t flags;
      std::memcpy(&flags, hits + word, 8);
      if (flags == 0) continue;
      for (int64_t i = word; i < word + 8; ++i)
        if (hits[i]) found[count++] = {keys[i], static_cast<int32_t>(start + i)};
    }
  }
  return count;
}

// The value that `count` of the numbers reach.
float reached_by(std::vector<float>& numbers, int64_t count) {
  std::nth_element(numbers.begin(), numbers.begin() + (count - 1), numbers.end(), std::greater<float>());
  return numbers[count - 1];
}

// Keeps, in order, the entries above the `count`-th largest key, and of those equal to it the first ones. NaN keys are
// never among the candidates, so there may be fewer than `count`. Returns how many; `cut` gets that key.
int64_t keep_largest(const Candidate* found, int64_t m, int64_t count, std::vector<float>& scratch, int64_t* out,
                     float& cut) {
  cut = LOWEST;
  int64_t ties = m;
  if (m >= count) {
    scratch.resize(m);
    for (int64_t i = 0; i < m; ++i) scratch[i] = found[i].key;
    cut = reached_by(scratch, count);
    ties = count;
    for (int64_t i = 0; i < m; ++i) ties -= found[i].key > cut;
  }
  int64_t place = 0;
  for (int64_t i = 0; i < m; ++i)
    if (found[i].key > cut || (found[i].key == cut && ties-- > 0)) out[place++] = found[i].column;
  return place;
}

// A row is cut into segments that lie over one another: group j holds the j-th entry of each. The maxima of groups then
// need no sum across a vector register, and few groups are looked into again.
template <class K, class Raw>
struct Groups {
  int64_t width, segments, stride;
  std::vector<float> maxima;
  std::vector<uint8_t> hits;

  Groups(int64_t width, int64_t k) : width(width), segments(16) {
    while (segments > 1 && width / segments < 4 * k) segments /= 2;
    stride = (width + segments - 1) / segments;
    maxima.resize(stride);
    hits.resize((stride + 7) / 8 * 8);
  }

  void read(const Raw* row, const float* bias) {
    for (int64_t start = 0; start < stride; start += BLOCK) {
      float best[BLOCK];
      for (int64_t i = 0; i < BLOCK; ++i) best[i] = LOWEST;
      for (int64_t s = 0; s < segments; ++s) {
        const Raw* x = row + s * stride + start;
        const float* b = bias + s * stride + start;
        int64_t size = std::min({BLOCK, stride - start, width - s * stride - start});
        // the row after this one: sixteen streams at a time are too many for the processor to foresee
        for (size_t byte = 0; byte < BLOCK * sizeof(Raw); byte += 64)
          __builtin_prefetch(reinterpret_cast<const char*>(x + width) + byte);
        if (size == BLOCK) {  // a constant length vectorises without a remainder
#pragma omp simd
          for (int64_t i = 0; i < BLOCK; ++i) {
            float key = K::of(x[i], b[i]);
            best[i] = key > best[i] ? key : best[i];
          }
        } else {
          for (int64_t i = 0; i < size; ++i) best[i] = std::max(best[i], K::of(x[i], b[i]));
        }
      }
      std::copy(best, best + std::min(BLOCK, stride - start), maxima.begin() + start);
    }
  }

  // Entries whose key is at least `cut`, looked for only in groups whose maximum is.
  int64_t collect(const Raw* row, const float* bias, float cut, Candidate* found) {
    int64_t count = 0;
    for (int64_t j = 0; j < stride; ++j) hits[j] = maxima[j] >= cut;
    for (int64_t word = 0; word < stride; word += 8) {  // eight flags at a time: nearly all are zero
      uint64_t flags;
      std::memcpy(&flags, hits.data() + word, 8);
      if (flags == 0) continue;
      for (int64_t j = word; j < std::min(word + 8, stride); ++j) {
        if (!hits[j]) continue;
        for (int64_t column = j; column < width; column += stride) {
          float key = K::of(row[column], bias[column]);
          found[count] = {key, static_cast<int32_t>(column)};
          count += key >= cut;
        }
      }
    }
    return count;
  }
};

// Candidates are the entries above a guess, a little below the cut of the row before. Where that leaves too few, the
// k-th largest maximum of a group is the guess: it is reached by at least k entries.
template <class K, class Raw>
void top(const Raw* pre, const float* bias, int64_t n, int64_t width, int64_t k, int64_t* out, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Groups<K, Raw> groups(width, k);
    std::vector<float> scratch;
    std::vector<Candidate> found(width + 1);
    float guess = -LOWEST, cut;
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; ++r) {
      const auto* row = pre + r * width;
      groups.read(row, bias);
      int64_t m = groups.collect(row, bias, guess, found.data());
      if (m < k) {
        scratch = groups.maxima;
        m = groups.collect(row, bias, reached_by(scratch, k), found.data());
      }
      int64_t kept = keep_largest(found.data(), m, k, scratch, out + r * k, cut);
      for (; kept < k; ++kept) out[r * k + kept] = width - 1;  // rows of NaN: the loss will tell
      guess = cut - 0.05f * std::fabs(cut);
    }
  }
}

// The same with one cut for the whole batch: candidates first, then exactly `count` of them.
template <class K, class Raw>
int64_t top_of_batch(const Raw* pre, const float* bias, int64_t n, int64_t width, int64_t count, int64_t* columns,
                     int64_t* offsets, int threads) {
  int64_t blocks = (width + BLOCK - 1) / BLOCK;
  std::vector<float> maxima(n * blocks);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < n; ++r)
    block_maxima<K>(pre + r * width, bias, width, BLOCK, maxima.data() + r * blocks);
  std::vector<float> scratch(maxima);
  float cut = n * blocks >= count ? reached_by(scratch, count) : LOWEST;
  std::vector<std::vector<Candidate>> rows(n);
#pragma omp parallel num_threads(threads)
  {
    std::vector<Candidate> found(width);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; ++r) {
      int64_t m = collect<K>(pre + r * width, bias, width, BLOCK, maxima.data() + r * blocks, cut, found.data());
      rows[r].assign(found.begin(), found.begin() + m);
    }
  }
  std::vector<Candidate> all;
  for (int64_t r = 0; r < n; ++r)
    for (auto& c : rows[r]) all.push_back(c);
  cut = LOWEST;
  int64_t ties = count;
  if (static_cast<int64_t>(all.size()) > count) {
    scratch.clear();
    for (auto& c : all) scratch.push_back(c.key);
    cut = reached_by(scratch, count);
    for (auto& c : all) ties -= c.key > cut;
  }
  int64_t place = 0;
  offsets[0] = 0;
  for (int64_t r = 0; r < n; ++r) {
    for (auto& c : rows[r])
      if (c.key > cut || (c.key == cut && ties-- > 0)) columns[place++] = c.column;
    offsets[r + 1] = place;
  }
  return place;
}

// Entries above the threshold of their column: counted into offsets[r + 1], or written from offsets[r] on.
template <class Raw>
void above(const Raw* pre, const float* bias, const float* threshold, int64_t n, int64_t width, int64_t* offsets,
           int64_t* columns, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint8_t> hits((width + 7) / 8 * 8);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n; ++r) {
      const Raw* row = pre + r * width;
      int64_t count = 0;
      for (int64_t j = 0; j < width; ++j) hits[j] = widen(row[j]) + bias[j] > threshold[j];
      if (columns == nullptr) {
        for (int64_t j = 0; j < width; ++j) count += hits[j];
        offsets[r + 1] = count;
        continue;
      }
      int64_t* out = columns + offsets[r];
      for (int64_t word = 0; word < width; word += 8) {
        uint64_t flags;
        std::memcpy(&flags, hits.data() + word, 8);
        if (flags == 0) continue;
        for (int64_t j = word; j < std::min(word + 8, width); ++j)
          if (hits[j]) *out++ = j;
      }
    }
  }
}

inline float dot(const float* a, const float* b, int64_t d) {
  float sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += a[i] * b[i];
  return sum;
}

// Four rows at a time: independent sums hide the latency of additions, and `left` is read once for four.
inline void dots4(const float* left, const float* a, const float* b, const float* c, const float* e, int64_t d,
                  float* out) {
  float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (int64_t i = 0; i < d; ++i) {
    float x = left[i];
    s0 += x * a[i];
    s1 += x * b[i];
    s2 += x * c[i];
    s3 += x * e[i];
  }
  out[0] = s0;
  out[1] = s1;
  out[2] = s2;
  out[3] = s3;
}

inline void add(float* sum, float f, const float* row, int64_t d) {
  for (int64_t i = 0; i < d; ++i) sum[i] += f * row[i];
}

inline void add4(float* sum, const float* f, const float* a, const float* b, const float* c, const float* e,
                 int64_t d) {
  float f0 = f[0], f1 = f[1], f2 = f[2], f3 = f[3];
  for (int64_t i = 0; i < d; ++i) sum[i] += (f0 * a[i] + f1 * b[i]) + (f2 * c[i] + f3 * e[i]);
}

// out[e] = <left, table[columns[e]]> for the entries of one row.
void row_dots(const float* left, const float* table, const int64_t* columns, int64_t m, int64_t d, float* out) {
  int64_t e = 0;
  for (; e + 4 <= m; e += 4)
    dots4(left, table + columns[e] * d, table + columns[e + 1] * d, table + columns[e + 2] * d,
          table + columns[e + 3] * d, d, out + e);
  for (; e < m; ++e) out[e] = dot(left, table + columns[e] * d, d);
}

// sum += sum over entries of values[e] * table[columns[e]].
void row_sum(float* sum, const float* values, const float* table, const int64_t* columns, int64_t m, int64_t d) {
  int64_t e = 0;
  for (; e + 4 <= m; e += 4)
    add4(sum, values + e, table + columns[e] * d, table + columns[e + 1] * d, table + columns[e + 2] * d,
         table + columns[e + 3] * d, d);
  for (; e < m; ++e) add(sum, values[e], table + columns[e] * d, d);
}

inline uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace

extern "C" {

// `half`: pre-activations are bfloat16, else float.
void visae_top(const void* pre, const float* bias, int half, int by_size, int64_t n, int64_t width, int64_t k,
               int64_t* out, int threads) {
  auto h = static_cast<const uint16_t*>(pre);
  auto f = static_cast<const float*>(pre);
  if (half && by_size)
    top<Key<uint16_t, true>>(h, bias, n, width, k, out, threads);
  else if (half)
    top<Key<uint16_t, false>>(h, bias, n, width, k, out, threads);
  else if (by_size)
    top<Key<float, true>>(f, bias, n, width, k, out, threads);
  else
    top<Key<float, false>>(f, bias, n, width, k, out, threads);
}

int64_t visae_top_of_batch(const void* pre, const float* bias, int half, int by_size, int64_t n, int64_t width,
                           int64_t count, int64_t* columns, int64_t* offsets, int threads) {
  auto h = static_cast<const uint16_t*>(pre);
  auto f = static_cast<const float*>(pre);
  if (half && by_size)
    return top_of_batch<Key<uint16_t, true>>(h, bias, n, width, count, columns, offsets, threads);
  if (half) return top_of_batch<Key<uint16_t, false>>(h, bias, n, width, count, columns, offsets, threads);
  if (by_size) return top_of_batch<Key<float, true>>(f, bias, n, width, count, columns, offsets, threads);
  return top_of_batch<Key<float, false>>(f, bias, n, width, count, columns, offsets, threads);
}

void visae_above(const void* pre, const float* bias, const float* threshold, int half, int64_t n, int64_t width,
                 int64_t* offsets, int64_t* columns, int threads) {
  if (half)
    above(static_cast<const uint16_t*>(pre), bias, threshold, n, width, offsets, columns, threads);
  else
    above(static_cast<const float*>(pre), bias, threshold, n, width, offsets, columns, threads);
}

void visae_dots(const float* left, const float* table, const int64_t* columns, const int64_t* offsets, int64_t n,
                int64_t d, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < n; ++r)
    row_dots(left + r * d, table, columns + offsets[r], offsets[r + 1] - offsets[r], d, out + offsets[r]);
}

// Entries of a row are in the order of their levels. `errors` [n, levels, d] gets share * 2 / d * (r_level - u), summed
// from the last level down to each: the gradient of losses[row] with respect to what an entry of that level adds.
void visae_reconstruct(const float* u, const float* values, const int64_t* columns, const int64_t* offsets,
                       const int64_t* level, const float* shares, const float* atoms, const float* bias, int64_t n,
                       int64_t d, int64_t levels, float* recon, float* errors, float* to_values, float* losses,
                       int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t r = 0; r < n; ++r) {
    float* sum = recon + r * d;
    float* rest = errors + r * levels * d;
    const float* x = u + r * d;
    std::memcpy(sum, bias, d * sizeof(float));
    float loss = 0;
    int64_t end = offsets[r + 1];
    for (int64_t l = 0, e = offsets[r]; l < levels; ++l) {
      int64_t stop = e;
      if (level == nullptr)
        stop = end;
      else
        while (stop < end && level[stop] <= l) ++stop;
      row_sum(sum, values + e, atoms, columns + e, stop - e, d);
      e = stop;
      float squares = 0, factor = shares[l] * 2 / d;
      float* error = rest + l * d;
      for (int64_t i = 0; i < d; ++i) {
        float miss = sum[i] - x[i];
        squares += miss * miss;
        error[i] = factor * miss;
      }
      loss += shares[l] * squares / d;
    }
    losses[r] = loss;
    for (int64_t l = levels - 1, e = end; l >= 0; --l) {
      if (l + 1 < levels) add(rest + l * d, 1.0f, rest + (l + 1) * d, d);
      int64_t start = e;
      if (level == nullptr)
        start = offsets[r];
      else
        while (start > offsets[r] && level[start - 1] >= l) --start;
      row_dots(rest + l * d, atoms, columns + start, e - start, d, to_values + start);
      e = start;
    }
  }
}

// Counting sort of entries by latent; entries of a latent stay in the order of the rows.
void visae_transpose(const int64_t* columns, const int64_t* offsets, int64_t n, int64_t width, int32_t* order,
                     int32_t* rows, int32_t* ends, int /*threads*/) {
  int64_t m = offsets[n];
  std::vector<int32_t> place(width + 1, 0);
  for (int64_t e = 0; e < m; ++e) ++place[columns[e] + 1];
  for (int64_t j = 0; j < width; ++j) place[j + 1] += place[j];
  for (int64_t j = 0; j <= width; ++j) ends[j] = place[j];
  for (int64_t r = 0; r < n; ++r)
    for (int64_t e = offsets[r]; e < offsets[r + 1]; ++e) {
      int32_t p = place[columns[e]]++;
      order[p] = static_cast<int32_t>(e);
      rows[p] = static_cast<int32_t>(r);
    }
}

// One pass over each row of a parameter [width, d]: gather its gradient from up to `parts` sparse contributions and a
// dense one, take off what is along the row (`unit`), Adam, renormalise, write the bfloat16 copy.
struct Part {
  const int32_t* ends;
  const int32_t* rows;
  const float* factors;
  const float* inputs;
};

void visae_update(float* weight, float* first, float* second, const float* dense, uint16_t* copy, const Part* parts,
                  int64_t n_parts, int64_t width, int64_t d, int unit, float lr, float low, float high, float eps,
                  float first_scale, float second_scale, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> buffer(d);
    float* g = buffer.data();
#pragma omp for schedule(dynamic, 32)
    for (int64_t j = 0; j < width; ++j) {
      float* w = weight + j * d;
      if (dense != nullptr)
        std::memcpy(g, dense + j * d, d * sizeof(float));
      else
        std::memset(g, 0, d * sizeof(float));
      for (int64_t p = 0; p < n_parts; ++p) {
        const Part& part = parts[p];
        int64_t e = part.ends[j], end = part.ends[j + 1];
        for (; e + 4 <= end; e += 4)
          add4(g, part.factors + e, part.inputs + int64_t(part.rows[e]) * d,
               part.inputs + int64_t(part.rows[e + 1]) * d, part.inputs + int64_t(part.rows[e + 2]) * d,
               part.inputs + int64_t(part.rows[e + 3]) * d, d);
        for (; e < end; ++e) add(g, part.factors[e], part.inputs + int64_t(part.rows[e]) * d, d);
      }
      if (unit) add(g, -dot(g, w, d), w, d);
      float* m = first + j * d;
      float* v = second + j * d;
      float squares = 0;
      for (int64_t i = 0; i < d; ++i) {
        m[i] = low * m[i] + (1 - low) * g[i];
        v[i] = high * v[i] + (1 - high) * g[i] * g[i];
        w[i] -= lr * (m[i] * first_scale) / (std::sqrt(v[i] * second_scale) + eps);
        squares += w[i] * w[i];
      }
      if (unit) {
        float scale = 1 / std::max(std::sqrt(squares), std::numeric_limits<float>::min());
        for (int64_t i = 0; i < d; ++i) w[i] *= scale;
      }
      if (copy != nullptr)
        for (int64_t i = 0; i < d; ++i) copy[j * d + i] = to_half(w[i]);
    }
  }
}

}  // extern "C"
