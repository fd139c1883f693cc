// DPC-KNN on a CPU in float32: exact, O(N) memory, a whole batch of images in one call.
//
// The definition is in reference.py; its symbols and the order of its steps are those of this file:
//
//     put_alike_together   the tokens in panels of tokens that are alike
//     search_all, _near    d2, and the nearest neighbours of every token
//     find_density         r, and the tokens in the order of their density
//     find_nearest_denser  delta2 of the tokens with a denser token among their neighbours
//     search_denser        delta2 of the others, the open ones
//     rank_centres         the centres
//     assign               every token's nearest centre, for all scales
//
// What makes it fast, beside what tiled.py does:
//
// * d2 is symmetric. A tile of it, the distances of two panels of tokens, is computed once: it
//   serves the tokens of both.
// * Most tiles are left out. A token's sketch is its projection on the 7 principal directions of
//   the image, and the length of what they leave of it: two tokens are at least as far apart as
//   their sketches, and the tokens of two panels at least as far as the boxes around the panels'
//   sketches. Where that is more than what any of the tokens still looks for, nobody needs the
//   tile.
// * Neighbours are keys (distance, index) in a sorted list. No two keys are equal, so tokens may be
//   offered in any order: of equal distances the lower index is nearer, always. Neither the order
//   of the panels nor what is left out nor the threads change a result by a bit.
//
// Two things hold exactly. |x|^2 and x_i . x_j are summed in the same order, channel by channel, so
// that tokens that coincide are at distance 0. And the origin is a token, so that differences of
// tokens on a grid are exact: ties remain ties.
//
// Distances are C d2 here, divided by C at the end: that changes no order.
//
// Vectors are GCC's and Clang's; the one place with intrinsics is `lanes_up_to`. Compiled without
// OpenMP, everything runs on one thread. native.py compiles this file and calls clustr_dpc_knn.

#if !defined(__AVX2__) || !defined(__FMA__)
#error "the processor has no AVX2, without which PyTorch is faster"
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include <immintrin.h>

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------------------- vectors

// Tokens that are handled at once, and the side of a tile: LANES sums of LANES lanes fit in the
// registers.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t IntVec __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vec load(const float* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

inline Vec broadcast(float value) { return value - Vec{}; }

// Where a is not a number, both give b.
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// A bit for every lane: is a <= b?
inline uint32_t lanes_up_to(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ);
#else
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LE_OQ));
#endif
}

inline float largest(Vec v) {
    float most = v[0];
    for (int l = 1; l < LANES; ++l) most = std::max(most, v[l]);
    return most;
}

#if defined(__clang__)
#define SHUFFLE(Index, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(Index, a, b, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif

// The first, and the second, halves of two vectors, interleaved.
inline Vec zip_low(Vec a, Vec b) {
#if defined(__AVX512F__)
    return SHUFFLE(IntVec, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
    return SHUFFLE(IntVec, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#endif
}

inline Vec zip_high(Vec a, Vec b) {
#if defined(__AVX512F__)
    return SHUFFLE(IntVec, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
    return SHUFFLE(IntVec, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
}

// Transposes a tile. Each round rotates the bits of an element's address (row, lane) by one.
inline void transpose(Vec (&tile)[LANES]) {
    for (int round = 1; round < LANES; round *= 2) {
        Vec zipped[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            zipped[2 * i] = zip_low(tile[i], tile[i + LANES / 2]);
            zipped[2 * i + 1] = zip_high(tile[i], tile[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; ++i) tile[i] = zipped[i];
    }
}

// ------------------------------------------------------------------------------------- distances

// LANES tokens, channel by channel.
struct Panel {
    float* values;  // (C, LANES)
    float* norm2;   // (LANES,) |x|^2; +inf where there is no token
};

// Packs tokens into a panel, but not their norms.
//   rows  (LANES,) pointers to the tokens, each (C,)
void pack(const float* const* rows, int64_t channels, Panel panel) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec tile[LANES];
        for (int l = 0; l < LANES; ++l) tile[l] = load(rows[l] + c);
        transpose(tile);
        for (int j = 0; j < LANES; ++j) store(panel.values + (c + j) * LANES, tile[j]);
    }
    for (; c < channels; ++c) {
        for (int l = 0; l < LANES; ++l) panel.values[c * LANES + l] = rows[l][c];
    }
}

// |x|^2 of a panel's tokens, summed as a product of two tokens is.
Vec sum_norm2(Panel panel, int64_t channels) {
    Vec norm2{};
    for (int64_t c = 0; c < channels; ++c) {
        const Vec values = load(panel.values + c * LANES);
        norm2 += values * values;
    }
    return norm2;
}

// C d2 between ROWS tokens and the LANES tokens of a panel. Not inlined, and for 8 rows at most, all
// its pointers have a register.
//   rows, norm2  (ROWS,) pointers to the tokens, each (C,), and their |x|^2
template <int ROWS>
__attribute__((noinline)) void distance2(const float* const* rows, const float* norm2, Panel lanes,
                                         int64_t channels, Vec* tile) {
    Vec dot[ROWS] = {};
    const float* row[ROWS];
    for (int i = 0; i < ROWS; ++i) row[i] = rows[i];
    for (int64_t c = 0; c < channels; ++c) {
        const Vec values = load(lanes.values + c * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) dot[i] += row[i][c] * values;
    }
    const Vec norm2_of_lanes = load(lanes.norm2);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
        const Vec full = (norm2[i] + norm2_of_lanes) - 2 * dot[i];
        tile[i] = full < 0 ? Vec{} : full;  // what is not a number stays so
    }
}

// The same between the tokens of two panels, whose values are next to each other.
void distance2(Panel rows, Panel lanes, int64_t channels, Vec (&tile)[LANES]) {
    Vec dot[LANES] = {};
    const float* a = rows.values;
    const float* b = lanes.values;
    for (int64_t c = 0; c < channels; ++c, a += LANES, b += LANES) {
        const Vec values = load(b);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) dot[i] += a[i] * values;
    }
    const Vec norm2 = load(lanes.norm2);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        const Vec full = (rows.norm2[i] + norm2) - 2 * dot[i];
        tile[i] = full < 0 ? Vec{} : full;
    }
}

// ------------------------------------------------------------------------------ sketches and boxes

constexpr int SKETCH = 8;  // principal directions, the last of which gives way to a length
typedef double Sketch __attribute__((vector_size(SKETCH * sizeof(double))));

// Boxes around sketches.
struct Boxes {
    int64_t stride;  // from a number of the sketches to the next: LANES more than there are boxes
    float* low;      // (SKETCH, stride)
    float* high;     // (SKETCH, stride)
    float* slack;    // (stride,) a half of the rounding of a distance: see ROUNDING

    void clear(int64_t b) const {
        for (int d = 0; d < SKETCH; ++d) low[d * stride + b] = INF, high[d * stride + b] = -INF;
        slack[b] = 0;
    }
    // Makes box b hold a point, one of boxes that are points, too.
    void widen(int64_t b, const Boxes& points, int64_t point) const {
        for (int d = 0; d < SKETCH; ++d) {
            const float at = points.low[d * points.stride + point];
            low[d * stride + b] = std::min(low[d * stride + b], at);
            high[d * stride + b] = std::max(high[d * stride + b], at);
        }
        slack[b] = std::max(slack[b], points.slack[point]);
    }
};

// What rounding adds to or takes from C d2 is at most ROUNDING (C + 20) (|x_i|^2 + |x_j|^2): half
// a unit in the last place for each of C products and sums, of numbers up to (|x_i| + |x_j|)^2,
// which is at most 2 |x_i|^2 + 2 |x_j|^2; and some for the sketches, summed in double precision.
constexpr float ROUNDING = std::numeric_limits<float>::epsilon();

// A token's part of it. Without bound where the token is not finite, or its norm is not.
float slack_of(float norm2, int64_t channels) {
    return norm2 < 1e37f ? ROUNDING * float(channels + 20) * norm2 : INF;
}

// What tokens in LANES boxes, `first` and those after it, are at least apart from those in box b of
// others, in C d2, but for rounding.
inline Vec apart2(const Boxes& boxes, int64_t first, const Boxes& others, int64_t b) {
    Vec sum{};
    for (int d = 0; d < SKETCH; ++d) {
        const int64_t row = d * boxes.stride + first;
        const float* const low = others.low + d * others.stride + b;
        const float* const high = others.high + d * others.stride + b;
        const Vec gap = larger(larger(load(boxes.low + row) - *high, *low - load(boxes.high + row)),
                               Vec{});
        sum += gap * gap;
    }
    return sum;
}

// Which of LANES boxes, `first` and those after it up to `end`, may hold tokens that are up to
// `reach` away from tokens in box b of others: a bit for each.
inline uint32_t near_boxes(const Boxes& boxes, int64_t first, int64_t end, const Boxes& others,
                           int64_t b, Vec reach) {
    const Vec limit = reach + (load(boxes.slack + first) + others.slack[b]);
    const uint32_t near = lanes_up_to(apart2(boxes, first, others, b), limit);
    return end - first < LANES ? near & ((1u << (end - first)) - 1) : near;
}

// ----------------------------------------------------------------------------------- neighbours

// A neighbour: above the bits of its distance (those of numbers from 0 order as the numbers do),
// below its index.
typedef int64_t Key;
constexpr Key NONE = std::numeric_limits<Key>::max();

constexpr int KEYS = 8;  // lists have a multiple of so many
typedef Key KeyVec __attribute__((vector_size(KEYS * sizeof(Key))));

inline Key key_of(float distance2, int64_t index) {
    int32_t bits;
    std::memcpy(&bits, &distance2, sizeof bits);
    return Key(bits) << 32 | index;
}

inline float distance2_of(Key key) {  // not a number for NONE
    const int32_t bits = int32_t(key >> 32);
    float distance2;
    std::memcpy(&distance2, &bits, sizeof bits);
    return distance2;
}

inline int32_t index_of(Key key) { return int32_t(key); }

// Puts a key in its place in an ascending list, whose last key is dropped.
inline void insert(Key key, Key* list, int length) {
    if (key >= list[length - 1]) return;
    for (int first = length - KEYS; first >= 0; first -= KEYS) {
        KeyVec keys;
        std::memcpy(&keys, list + first, sizeof keys);
        KeyVec before = SHUFFLE(KeyVec, keys, keys, 0, 0, 1, 2, 3, 4, 5, 6);
        before[0] = first ? list[first - 1] : std::numeric_limits<Key>::min();
        const KeyVec offered = key - KeyVec{};
        const KeyVec moved = before > offered ? before : offered;
        keys = keys < moved ? keys : moved;
        std::memcpy(list + first, &keys, sizeof keys);
    }
}

// Sorts 8 vectors, lane by lane (the 19 comparisons of Batcher's odd-even merge sort).
inline void sort_8(Vec* v) {
    constexpr int network[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6},
                                    {5, 7}, {1, 2}, {5, 6}, {0, 4}, {1, 5}, {2, 6}, {3, 7},
                                    {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma GCC unroll 19
    for (const auto& pair : network) {
        const Vec a = v[pair[0]], b = v[pair[1]];
        v[pair[0]] = smaller(a, b);
        v[pair[1]] = larger(a, b);
    }
}

// A bound that at least 8 of the rows do not exceed, lane by lane: the rows fall into 16 groups,
// and so many of these have a minimum up to it. About 11 rows of a long column are below.
inline Vec bound_of_8_smallest(const float* columns, int64_t rows) {
    Vec least[16];
    for (auto& v : least) v = broadcast(INF);
    int64_t i = 0;
    for (; i + 16 <= rows; i += 16) {
#pragma GCC unroll 16
        for (int g = 0; g < 16; ++g) least[g] = smaller(load(columns + (i + g) * LANES), least[g]);
    }
    for (int g = 0; i < rows; ++i, ++g) least[g] = smaller(load(columns + i * LANES), least[g]);
    sort_8(least);
    sort_8(least + 8);
    // Of two ascending runs of 8, the 8 smallest are the smaller ones of opposite entries.
    Vec bound = smaller(least[0], least[15]);
    for (int g = 1; g < 8; ++g) bound = larger(bound, smaller(least[g], least[15 - g]));
    return bound;
}

// ----------------------------------------------------------------------------------- one image

// Tokens by a value: the largest first, of equal ones the lower token.
struct Ranked {
    int64_t value;
    int32_t token;
    bool operator<(const Ranked& other) const {
        return value != other.value ? value > other.value : token < other.token;
    }
};

// An integer that orders as the number does. Not a number is the greatest, as for torch.sort.
int64_t ordered(double number) {
    if (std::isnan(number)) return std::numeric_limits<int64_t>::max();
    int64_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits < 0 ? bits ^ std::numeric_limits<int64_t>::max() : bits;
}

// From so many tokens on, sketches pay.
constexpr int64_t SKETCHED_FROM = 2000;

struct Image {
    const float* x;    // (N, C)
    int64_t N, C, k;   // tokens, channels, neighbours of the density
    int length;        // neighbours kept of each token, the token itself among them
    int64_t M;         // centres; those of the smaller scales are the first of them
    int64_t assigned;  // centres that tokens are assigned to: 0 where all tokens are centres

    float* origin;       // (C,)
    Sketch* directions;  // (C,) the principal directions
    float* sketches;     // (N, SKETCH) by token
    bool sketched;       // whether they tell tokens apart; else all are 0

    // By place: tokens that are alike are next to each other.
    int32_t* token;    // (N,) the token at each place
    int32_t* place;    // (N,) and the place of each token
    float* rows;       // (N, C) the tokens, from the origin
    float* norm2;      // (N,) their |x|^2
    Boxes points;      // around each token
    Boxes panels;      // around LANES tokens, and below around those of a block
    Boxes blocks;
    Key* neighbours;   // (N, length)
    float* reach;      // (N,) distance of the last neighbour; then -1, up to LANES
    float* farthest;   // (panels,) the largest reach
    int32_t* densest;  // (panels,) the least position

    double* r;          // (N,)
    Ranked* ranked;     // (N,)
    int32_t* order;     // (N,) tokens by density, then the centres by rank
    int32_t* position;  // (N,) of the tokens in the order of density
    double* delta2;     // (N,)
    int32_t* open;      // (opens,) places of the tokens without a denser neighbour
    int64_t opens;
    int32_t* centre_places;  // (assigned,) by rank
    Boxes centre_points;     // around each centre

    int64_t tokens_of_panel(int64_t p) const { return std::min<int64_t>(LANES, N - p * LANES); }

    // Packs tokens into a panel.
    //   places  (count,) where they are; null for `first` and those after it
    void pack(const int32_t* places, int64_t first, int64_t count, Panel panel) const {
        const float* from[LANES];
        for (int64_t l = 0; l < LANES; ++l) {
            const int64_t i = std::min(l, count - 1);
            const int64_t place = places ? places[i] : first + i;
            from[l] = rows + place * C;
            panel.norm2[l] = l < count ? norm2[place] : INF;
        }
        ::pack(from, C, panel);
    }

    // C d2 between tokens anywhere and those of a panel; the rows after `count` have no meaning.
    __attribute__((always_inline)) void distance2(const int32_t* places, int64_t count, Panel lanes,
                                                  Vec (&tile)[LANES]) const {
        const float* from[LANES];
        float norms[LANES];
        for (int i = 0; i < LANES; ++i) {
            const int64_t place = places[std::min<int64_t>(i, count - 1)];
            from[i] = rows + place * C;
            norms[i] = norm2[place];
        }
        for (int i = 0; i < count; i += 8) {
            switch (divide_up(std::min<int64_t>(count - i, 8), 2)) {
                case 1: ::distance2<2>(from + i, norms + i, lanes, C, tile + i); break;
                case 2: ::distance2<4>(from + i, norms + i, lanes, C, tile + i); break;
                case 3: ::distance2<6>(from + i, norms + i, lanes, C, tile + i); break;
                default: ::distance2<8>(from + i, norms + i, lanes, C, tile + i);
            }
        }
    }
};

// Panels from `first` to before `end`.
struct Block {
    int64_t first, end;
};

// The origin moves to a token near the mean of the image: distances stay, but norms shrink and
// with them the cancellation in |x_i|^2 + |x_j|^2 - 2 x_i . x_j.
//   mean  (C,) scratch
void choose_origin(Image& image, float* mean) {
    const int64_t N = image.N, C = image.C;
    const int64_t step = std::max<int64_t>(1, N / 64);  // a sample is near enough
    std::fill(mean, mean + C, 0.f);
    for (int64_t i = 0; i < N; i += step) {
        for (int64_t c = 0; c < C; ++c) mean[c] += image.x[i * C + c];
    }
    for (int64_t c = 0; c < C; ++c) mean[c] /= float(divide_up(N, step));
    float least = INF;
    int64_t nearest = 0;
    for (int64_t i = 0; i < N; i += step) {
        float offset = 0;
        for (int64_t c = 0; c < C; ++c) {
            const float difference = image.x[i * C + c] - mean[c];
            offset += difference * difference;
        }
        if (offset < least) {
            least = offset;
            nearest = i;
        }
    }
    std::copy_n(image.x + nearest * C, C, image.origin);
}

// Makes C rows of 8 columns orthonormal, column by column; what depends on others becomes 0.
void orthonormalise(Sketch* rows, int64_t C) {
    for (int d = 0; d < SKETCH; ++d) {
        for (int again = 0; again < 2; ++again) {  // once leaves what rounding is of long columns
            Sketch along{};
            for (int64_t c = 0; c < C; ++c) along += rows[c][d] * rows[c];
            const double norm2 = along[d];
            if (!(norm2 > 0)) break;
            for (int64_t c = 0; c < C; ++c) {
                double value = rows[c][d];
                for (int e = 0; e < d; ++e) value -= along[e] * rows[c][e];
                rows[c][d] = value;
            }
            double left = 0;
            for (int64_t c = 0; c < C; ++c) left += rows[c][d] * rows[c][d];
            const double scale = left > 1e-20 * norm2 ? 1 / std::sqrt(left) : 0;
            for (int64_t c = 0; c < C; ++c) rows[c][d] *= scale;
        }
    }
}

// Sketches pay where they hold so much of the tokens' variance. A photograph's feature map had 0.96,
// random tokens of 64 channels have about 8 / 64.
constexpr double ENOUGH = 0.5;

// The principal directions: two steps of subspace iteration, on a sample of the tokens.
//   mean  (C,) what choose_origin leaves
// Returns whether there is enough in them.
bool choose_directions(Image& image, const float* mean) {
    const int64_t N = image.N, C = image.C;
    const int64_t step = std::max<int64_t>(1, N / 128);
    std::vector<Sketch> found(C);
    for (int64_t c = 0; c < C; ++c) {
        for (int d = 0; d < SKETCH; ++d) found[c][d] = image.x[N * d / SKETCH * C + c] - mean[c];
    }
    double all = 0, kept = 0;  // sums of squares, of the tokens and of their sketches
    for (int round = 0; round < 3; ++round) {
        orthonormalise(found.data(), C);
        std::copy_n(found.data(), C, image.directions);
        std::fill(found.begin(), found.end(), Sketch{});
        for (int64_t i = 0; i < N; i += step) {
            const float* const x = image.x + i * C;
            Sketch sketch{};
            for (int64_t c = 0; c < C; ++c) sketch += double(x[c] - mean[c]) * image.directions[c];
            if (round < 2) {
                for (int64_t c = 0; c < C; ++c) found[c] += double(x[c] - mean[c]) * sketch;
            } else {
                for (int64_t c = 0; c < C; ++c) all += double(x[c] - mean[c]) * (x[c] - mean[c]);
                for (int d = 0; d < SKETCH; ++d) kept += sketch[d] * sketch[d];
            }
        }
    }
    return kept > ENOUGH * all;
}

// Sketches of all tokens: seven projections, and the length of what is left, which also bounds
// distances from below. Returns whether all are finite.
bool make_sketches(Image& image) {
    const int64_t C = image.C;
    for (int64_t i = 0; i < image.N; ++i) {
        const float* const x = image.x + i * C;
        Sketch even{}, odd{};
        double norm2 = 0;
        int64_t c = 0;
        for (; c + 2 <= C; c += 2) {
            const double a = x[c] - image.origin[c], b = x[c + 1] - image.origin[c + 1];
            even += a * image.directions[c];
            odd += b * image.directions[c + 1];
            norm2 += a * a + b * b;
        }
        if (c < C) {
            const double a = x[c] - image.origin[c];
            even += a * image.directions[c];
            norm2 += a * a;
        }
        even += odd;
        for (int d = 0; d + 1 < SKETCH; ++d) norm2 -= even[d] * even[d];
        even[SKETCH - 1] = std::sqrt(std::max(norm2, 0.0));
        for (int d = 0; d < SKETCH; ++d) {
            if (!(std::abs(even[d]) < 1e18)) return false;
            image.sketches[i * SKETCH + d] = float(even[d]);
        }
    }
    return true;
}

// Puts tokens that are alike next to each other: halves them along the direction in which their
// sketches reach farthest, and the halves again, down to panels. Blocks are halved first.
void put_alike_together(Image& image, int64_t first, int64_t end, int64_t block_panels) {
    const int64_t unit = (end - first > block_panels ? block_panels : 1);
    const int64_t units = divide_up(end - first, unit);
    if (units < 2) return;
    int32_t* const from = image.token + first * LANES;
    int32_t* const to = image.token + std::min(end * LANES, image.N);
    float low[SKETCH], high[SKETCH];
    std::fill_n(low, SKETCH, INF);
    std::fill_n(high, SKETCH, -INF);
    for (const int32_t* i = from; i < to; ++i) {
        for (int d = 0; d < SKETCH; ++d) {
            low[d] = std::min(low[d], image.sketches[*i * SKETCH + d]);
            high[d] = std::max(high[d], image.sketches[*i * SKETCH + d]);
        }
    }
    int along = 0;
    for (int d = 1; d < SKETCH; ++d) {
        if (high[d] - low[d] > high[along] - low[along]) along = d;
    }
    const int64_t middle = first + units / 2 * unit;
    const float* const value = image.sketches + along;
    std::nth_element(from, image.token + middle * LANES, to, [value](int32_t a, int32_t b) {
        return value[a * SKETCH] < value[b * SKETCH];
    });
    put_alike_together(image, first, middle, block_panels);
    put_alike_together(image, middle, end, block_panels);
}

// Decides where every token is.
//   mean  (C,) what choose_origin leaves
void arrange(Image& image, const float* mean, int64_t block_panels) {
    std::iota(image.token, image.token + image.N, 0);
    image.sketched =
        image.N >= SKETCHED_FROM && choose_directions(image, mean) && make_sketches(image);
    if (image.sketched) {
        put_alike_together(image, 0, divide_up(image.N, LANES), block_panels);
    } else {
        std::fill_n(image.sketches, image.N * SKETCH, 0.f);
    }
}

// Fills in what is kept by place.
//   panel  scratch
void place_tokens(Image& image, Block block, int64_t number, Panel panel) {
    image.blocks.clear(number);
    for (int64_t p = block.first; p < block.end; ++p) {
        const int64_t first = p * LANES, count = image.tokens_of_panel(p);
        for (int64_t i = first; i < first + count; ++i) {
            const float* const x = image.x + image.token[i] * image.C;
            float* const row = image.rows + i * image.C;
            for (int64_t c = 0; c < image.C; ++c) row[c] = x[c] - image.origin[c];
        }
        image.pack(nullptr, first, count, panel);
        const Vec norm2 = sum_norm2(panel, image.C);
        image.panels.clear(p);
        for (int64_t l = 0; l < count; ++l) {
            const int64_t i = first + l;
            const float* const sketch = image.sketches + image.token[i] * SKETCH;
            image.place[image.token[i]] = int32_t(i);
            image.norm2[i] = norm2[l];
            image.reach[i] = INF;
            for (int d = 0; d < SKETCH; ++d) {
                image.points.low[d * image.points.stride + i] = sketch[d];
            }
            image.points.slack[i] = slack_of(norm2[l], image.C);
            image.panels.widen(p, image.points, i);
            image.blocks.widen(number, image.points, i);
        }
        std::fill_n(image.reach + first + count, LANES - count, -1.f);
        image.farthest[p] = INF;
        std::fill_n(image.neighbours + first * image.length, count * image.length, NONE);
    }
}

// Offers a token as a neighbour to the one at a place.
inline void offer(Image& image, int64_t place, float distance2, int32_t token) {
    Key* const list = image.neighbours + place * image.length;
    insert(key_of(distance2, token), list, image.length);
    const Key last = list[image.length - 1];
    if (last != NONE) image.reach[place] = distance2_of(last);
}

void set_farthest(Image& image, int64_t p) {
    image.farthest[p] = largest(load(image.reach + p * LANES));
}

// Offers a block's tokens to those of a panel.
//   columns  (tokens of the block, LANES) their distances
void offer_block(Image& image, int64_t p, Block block, const float* columns) {
    const int64_t first = block.first * LANES;
    const int64_t rows = std::min(block.end * LANES, image.N) - first;
    Vec limit = load(image.reach + p * LANES);
    if (image.farthest[p] == INF && image.length == 8) {
        limit = smaller(limit, bound_of_8_smallest(columns, rows));
    }
    const int length = image.length;
    const int32_t* const token = image.token + first;
    Key* const lists = image.neighbours + p * LANES * length;
    for (int64_t i = 0; i < rows; ++i) {
        uint32_t near = lanes_up_to(load(columns + i * LANES), limit);
        for (; near; near &= near - 1) {
            const int l = __builtin_ctz(near);
            insert(key_of(columns[i * LANES + l], token[i]), lists + l * length, length);
        }
    }
    for (int64_t l = 0; l < image.tokens_of_panel(p); ++l) {
        const Key last = lists[(l + 1) * length - 1];
        if (last != NONE) image.reach[p * LANES + l] = distance2_of(last);
    }
    set_farthest(image, p);
}

// Makes all tokens of two blocks neighbours of each other, or those of one block among themselves.
//   panels   scratch: those of two blocks
//   columns  scratch: for each panel (tokens of the other block, LANES) distances
void search_all(Image& image, Block a, Block b, const Panel* panels, float* columns) {
    const bool same = a.first == b.first;
    const int64_t most = std::max(a.end - a.first, b.end - b.first);
    const int64_t column = most * LANES * LANES;  // numbers of a panel's column
    float* const columns_b = same ? columns : columns + most * column;
    const Panel* const panels_b = same ? panels : panels + most;
    const auto pack = [&image](Block block, const Panel* to) {
        for (int64_t p = block.first; p < block.end; ++p, ++to) {
            image.pack(nullptr, p * LANES, image.tokens_of_panel(p), *to);
        }
    };
    pack(a, panels);
    if (!same) pack(b, panels_b);
    for (int64_t i = a.first; i < a.end; ++i) {
        for (int64_t j = std::max(i, b.first); j < b.end; ++j) {
            Vec tile[LANES];
            distance2(panels_b[j - b.first], panels[i - a.first], image.C, tile);
            float* to = columns + (i - a.first) * column + (j - b.first) * LANES * LANES;
            for (int l = 0; l < LANES; ++l) store(to + l * LANES, tile[l]);
            if (i == j) continue;
            transpose(tile);
            to = columns_b + (j - b.first) * column + (i - a.first) * LANES * LANES;
            for (int l = 0; l < LANES; ++l) store(to + l * LANES, tile[l]);
        }
    }
    for (int64_t p = a.first; p < a.end; ++p) {
        offer_block(image, p, b, columns + (p - a.first) * column);
    }
    for (int64_t p = b.first; p < b.end && !same; ++p) {
        offer_block(image, p, a, columns_b + (p - b.first) * column);
    }
}

// Finds the tokens of panel q that may be neighbours of a token of panel p, or have one there.
//   places  (LANES,) where they are, the result
// Returns how many there are.
int64_t find_near(const Image& image, int64_t p, int64_t q, int32_t* places) {
    const Boxes& points = image.points;
    const Vec reach = load(image.reach + p * LANES), slack = load(points.slack + p * LANES);
    Vec sketches[SKETCH];
    for (int d = 0; d < SKETCH; ++d) sketches[d] = load(points.low + d * points.stride + p * LANES);
    int64_t found = 0;
    for (int64_t i = q * LANES; i < q * LANES + image.tokens_of_panel(q); ++i) {
        Vec apart2{};
        for (int d = 0; d < SKETCH; ++d) {
            const Vec gap = sketches[d] - points.low[d * points.stride + i];
            apart2 += gap * gap;
        }
        const Vec limit = larger(reach, broadcast(image.reach[i])) + (slack + points.slack[i]);
        places[found] = int32_t(i);
        found += lanes_up_to(apart2, limit) != 0;
    }
    return found;
}

// Makes the tokens of a panel and tokens of another block neighbours of each other.
void meet(Image& image, int64_t p, Panel panel, const int32_t* places, int64_t count) {
    const int64_t first = p * LANES, tokens = image.tokens_of_panel(p);
    Vec tile[LANES];
    image.distance2(places, count, panel, tile);
    const Vec reach = load(image.reach + first);
    Vec beyond = broadcast(INF);  // how far from being of use the nearest is
    for (int64_t i = 0; i < count; ++i) {
        beyond = smaller(tile[i] - larger(reach, broadcast(image.reach[places[i]])), beyond);
    }
    if (!lanes_up_to(beyond, Vec{})) return;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t other = places[i];
        uint32_t near = lanes_up_to(tile[i], load(image.reach + first));
        for (; near; near &= near - 1) {
            const int l = __builtin_ctz(near);
            offer(image, first + l, tile[i][l], image.token[other]);
        }
        near = lanes_up_to(tile[i], broadcast(image.reach[other])) & ((1u << tokens) - 1);
        for (; near; near &= near - 1) {
            const int l = __builtin_ctz(near);
            offer(image, other, tile[i][l], image.token[first + l]);
        }
    }
}

// Makes the tokens of two blocks neighbours of each other, where they may be.
//   panel  scratch
void search_near(Image& image, Block a, int64_t number_a, Block b, int64_t number_b, Panel panel) {
    const auto farthest = [&image](Block block) {
        return *std::max_element(image.farthest + block.first, image.farthest + block.end);
    };
    const Vec reach = broadcast(std::max(farthest(a), farthest(b)));
    if (!near_boxes(image.blocks, number_b, number_b + 1, image.blocks, number_a, reach)) return;
    int32_t near[256 + LANES];  // a block's
    for (int64_t i = a.first; i < a.end; ++i) {
        int64_t found = 0;
        for (int64_t first = b.first; first < b.end; first += LANES) {
            const Vec reaches = larger(load(image.farthest + first), broadcast(image.farthest[i]));
            uint32_t panels = near_boxes(image.panels, first, b.end, image.panels, i, reaches);
            for (; panels; panels &= panels - 1) {
                found += find_near(image, i, first + __builtin_ctz(panels), near + found);
            }
        }
        if (!found) continue;
        image.pack(nullptr, i * LANES, image.tokens_of_panel(i), panel);
        for (int64_t first = 0; first < found; first += LANES) {
            meet(image, i, panel, near + first, std::min<int64_t>(LANES, found - first));
        }
        set_farthest(image, i);
    }
    for (int64_t p = b.first; p < b.end; ++p) set_farthest(image, p);
}

// Neighbours nearer than this share of their squared norms are nearly equal tokens: the products
// above leave of their distance little but rounding, which would order their densities. On
// steep smooth gradients 1/8 gives 0.3 % of the tokens another label than float64 does, at worst
// 1.3 %, as taking all anew does; 1/64 gives 14 % and 71 %.
constexpr float NEARLY_EQUAL = 1.f / 8;

// Takes the distances of nearly equal neighbours anew, by differences.
void refine_neighbours(Image& image, Block block) {
    const int64_t C = image.C;
    for (int64_t i = block.first * LANES; i < std::min(block.end * LANES, image.N); ++i) {
        Key* const list = image.neighbours + i * image.length;
        const float* const a = image.x + image.token[i] * C;
        for (int n = 0; n < image.length && list[n] != NONE; ++n) {
            const int32_t j = index_of(list[n]);
            const float norms = image.norm2[i] + image.norm2[image.place[j]];
            if (distance2_of(list[n]) >= NEARLY_EQUAL * norms) break;
            const float* const b = image.x + j * C;
            Vec even{}, odd{};
            int64_t c = 0;
            for (; c + 2 * LANES <= C; c += 2 * LANES) {
                const Vec first = load(a + c) - load(b + c);
                const Vec second = load(a + c + LANES) - load(b + c + LANES);
                even += first * first;
                odd += second * second;
            }
            float sum = 0;
            for (; c < C; ++c) sum += (a[c] - b[c]) * (a[c] - b[c]);
            even += odd;
            for (int l = 0; l < LANES; ++l) sum += even[l];
            // The list was nearly in order before.
            const Key key = key_of(sum, j);
            int place = n;
            for (; place > 0 && list[place - 1] > key; --place) list[place] = list[place - 1];
            list[place] = key;
        }
    }
}

// r, and with it the order of the tokens from the densest to the least dense.
void find_density(Image& image) {
    for (int64_t i = 0; i < image.N; ++i) {
        const Key* nearest = image.neighbours + i * image.length;
        const int32_t token = image.token[i];
        double sum = 0;
        for (int64_t j = 0; j < image.k; ++j) sum += distance2_of(nearest[j]) / double(image.C);
        image.r[token] = -sum / double(image.k);
        image.ranked[i] = {ordered(image.r[token]), token};
    }
    std::sort(image.ranked, image.ranked + image.N);
    for (int64_t i = 0; i < image.N; ++i) {
        image.order[i] = image.ranked[i].token;
        image.position[image.order[i]] = int32_t(i);
    }
}

// delta2 of the tokens with a denser one among their neighbours: the first such is the nearest.
void find_nearest_denser(Image& image) {
    image.opens = 0;
    for (int64_t i = 0; i < image.N; ++i) {
        const int32_t token = image.token[i];
        const int32_t position = image.position[token];
        int32_t& densest = image.densest[i / LANES];
        densest = i % LANES ? std::min(densest, position) : position;
        const Key* nearest = image.neighbours + i * image.length;
        const Key* found = std::find_if(nearest, nearest + image.length, [&](Key key) {
            return key == NONE || image.position[index_of(key)] < position;
        });
        if (found < nearest + image.length && *found != NONE) {
            image.delta2[token] = distance2_of(*found) / double(image.C);
        } else {
            image.delta2[token] = INF;  // of the densest token it remains so
            if (position > 0) image.open[image.opens++] = int32_t(i);
        }
    }
}

// Open tokens that are searched for together. Where sketches leave out most tokens, they leave out
// more for one seeker alone.
int64_t seekers_together(const Image& image) { return image.sketched ? 1 : LANES; }

int64_t groups_of_seekers(const Image& image) {
    return divide_up(image.opens, seekers_together(image));
}

// delta2 of a group of open tokens, the seekers: the nearest of all that are denser.
//   panel  scratch
void search_denser(Image& image, int64_t group, int64_t block_panels, Panel panel) {
    const int64_t together = seekers_together(image);
    const int32_t* const open = image.open + group * together;
    const int64_t count = std::min(image.opens - group * together, together);
    IntVec position{};  // 0 in the lanes without a seeker
    Vec least = broadcast(-1.f);
    int32_t last = 0;
    float bounds[2 * SKETCH * (LANES + 1)], slack[LANES + 1];
    const Boxes box{LANES + 1, bounds, bounds + SKETCH * (LANES + 1), slack};
    box.clear(0);
    for (int64_t l = 0; l < count; ++l) {
        position[l] = image.position[image.token[open[l]]];
        last = std::max(last, position[l]);
        least[l] = INF;
        box.widen(0, image.points, open[l]);
    }
    image.pack(open, 0, count, panel);
    const auto search_panel = [&](int64_t p) {
        const int64_t first = p * LANES;
        int32_t near[LANES];
        int64_t found = 0;
        const Vec reach = broadcast(largest(least));
        uint32_t tokens = near_boxes(image.points, first, image.N, box, 0, reach);
        for (; tokens; tokens &= tokens - 1) {
            const int64_t i = first + __builtin_ctz(tokens);
            if (image.position[image.token[i]] < last) near[found++] = int32_t(i);
        }
        if (!found) return;
        Vec tile[LANES];
        image.distance2(near, found, panel, tile);
        for (int64_t i = 0; i < found; ++i) {
            const IntVec is_denser = image.position[image.token[near[i]]] - IntVec{} < position;
            least = (is_denser & (tile[i] < least)) ? tile[i] : least;
        }
    };
    // Near blocks first: what they hold keeps the others out.
    const int64_t panels = divide_up(image.N, LANES), blocks = divide_up(panels, block_panels);
    std::vector<std::pair<float, int64_t>> near_first(divide_up(blocks, LANES) * LANES);
    for (int64_t b = 0; b < blocks; b += LANES) {
        const Vec distances = apart2(image.blocks, b, box, 0);
        for (int l = 0; l < LANES; ++l) near_first[b + l] = {distances[l], b + l};
    }
    near_first.resize(blocks);
    std::sort(near_first.begin(), near_first.end());
    for (const auto& [distance, block] : near_first) {
        if (distance > largest(least) + (slack[0] + image.blocks.slack[block])) continue;
        const int64_t end = std::min(panels, (block + 1) * block_panels);
        for (int64_t first = block * block_panels; first < end; first += LANES) {
            const Vec reach = broadcast(largest(least));
            uint32_t near = near_boxes(image.panels, first, end, box, 0, reach);
            for (; near; near &= near - 1) {
                const int64_t p = first + __builtin_ctz(near);
                if (image.densest[p] < last) search_panel(p);
            }
        }
    }
    for (int64_t l = 0; l < count; ++l) {
        image.delta2[image.token[open[l]]] = least[l] / double(image.C);
    }
}

// The tokens with the M highest scores log(delta2) / 2 + r, from the highest on.
void rank_centres(Image& image) {
    for (int64_t i = 0; i < image.N; ++i) {
        const double score = std::log(image.delta2[i]) / 2 + image.r[i];
        image.ranked[i] = {ordered(score), int32_t(i)};
    }
    Ranked* const end = image.ranked + image.M;
    if (image.M < image.N) std::nth_element(image.ranked, end, image.ranked + image.N);
    std::sort(image.ranked, end);
    for (int64_t m = 0; m < image.M; ++m) image.order[m] = image.ranked[m].token;
    for (int64_t m = 0; m < image.assigned; ++m) {
        image.centre_places[m] = image.place[image.order[m]];
        for (int d = 0; d < SKETCH; ++d) {
            image.centre_points.low[d * image.centre_points.stride + m] =
                image.points.low[d * image.points.stride + image.centre_places[m]];
        }
        image.centre_points.slack[m] = image.points.slack[image.centre_places[m]];
    }
}

// The clusters of all scales: counts (S,), and labels (S, B, N), here of one image.
struct Scales {
    int64_t number;
    const int64_t* counts;
    int64_t* labels;
    int64_t stride;  // from a scale's labels to the next one's
};

// The nearest centre of LANES tokens so far.
struct Nearest {
    Vec distance2 = broadcast(INF);
    IntVec rank{};

    // Looks at centres of ascending ranks: on ties the lower one stays.
    void look(const Image& image, const int32_t* ranks, int64_t count, Panel tokens) {
        for (int64_t first = 0; first < count; first += LANES) {
            const int64_t rows = std::min<int64_t>(LANES, count - first);
            int32_t places[LANES];
            for (int64_t j = 0; j < rows; ++j) places[j] = image.centre_places[ranks[first + j]];
            Vec tile[LANES];
            image.distance2(places, rows, tokens, tile);
            for (int64_t j = 0; j < rows; ++j) {
                const IntVec nearer = tile[j] < distance2;
                distance2 = nearer ? tile[j] : distance2;
                rank = nearer ? ranks[first + j] - IntVec{} : rank;
            }
        }
    }
};

// Every token's nearest centre: of the first counts[s] centres for each scale s.
//   panel  scratch
void assign(const Image& image, Block block, Scales scales, Panel panel) {
    std::vector<int64_t> ends(scales.counts, scales.counts + scales.number);
    std::sort(ends.begin(), ends.end());
    while (!ends.empty() && ends.back() > image.assigned) ends.pop_back();
    std::vector<int32_t> near(image.assigned);
    std::vector<IntVec> before(ends.size());  // what the panel before found
    for (int64_t p = block.first; p < block.end && !ends.empty(); ++p) {
        image.pack(nullptr, p * LANES, image.tokens_of_panel(p), panel);
        Nearest nearest;
        int64_t begin = 0;
        for (size_t e = 0; e < ends.size(); begin = ends[e++]) {
            int64_t found = 0;
            if (!image.sketched) {
                found = ends[e] - begin;
                std::iota(near.data(), near.data() + found, int32_t(begin));
            }
            // The centres of the panel before are near: what is farther than they are is left out.
            Nearest guess = nearest;
            if (p > block.first && image.sketched) {
                int32_t ranks[LANES];
                for (int l = 0; l < LANES; ++l) ranks[l] = before[e][l];
                guess.look(image, ranks, LANES, panel);
            }
            float reach = 0;
            for (int64_t l = 0; l < image.tokens_of_panel(p); ++l) {
                reach = std::max(reach, guess.distance2[l]);
            }
            for (int64_t first = begin; first < ends[e] && image.sketched; first += LANES) {
                uint32_t centres = near_boxes(image.centre_points, first, ends[e], image.panels, p,
                                              broadcast(reach));
                for (; centres; centres &= centres - 1) {
                    near[found++] = int32_t(first + __builtin_ctz(centres));
                }
            }
            nearest.look(image, near.data(), found, panel);
            before[e] = nearest.rank;
            for (int64_t s = 0; s < scales.number; ++s) {
                if (scales.counts[s] != ends[e]) continue;
                int64_t* const labels = scales.labels + s * scales.stride;
                for (int64_t l = 0; l < image.tokens_of_panel(p); ++l) {
                    labels[image.token[p * LANES + l]] = nearest.rank[l];
                }
            }
        }
    }
}

// Makes every centre a member of its own cluster, also where centres coincide.
void keep_own_centre(const Image& image, Scales scales) {
    for (int64_t s = 0; s < scales.number; ++s) {
        int64_t* labels = scales.labels + s * scales.stride;
        for (int64_t m = 0; m < scales.counts[s]; ++m) labels[image.order[m]] = m;
    }
}

// -------------------------------------------------------------------------------------- a batch

// Panels of a block: the distances between two blocks of 256 tokens stay in a core's cache. Where
// that leaves too few pairs of blocks for the threads, blocks become smaller, down to 2 panels.
int64_t choose_block(int64_t batch, int64_t panels, int64_t threads) {
    int64_t block = 256 / LANES;
    while (threads > 1 && block > 2) {
        const int64_t blocks = divide_up(panels, block);
        if (batch * blocks * (blocks + 1) / 2 >= 4 * threads) break;
        block /= 2;
    }
    return divide_up(panels, divide_up(panels, block));  // blocks of nearly the same size
}

// Memory for arrays, each from the start of a cache line on.
class Arena {
public:
    template <typename T>
    T* take(int64_t count) {
        blocks_.reserve(blocks_.size() + 1);
        const size_t bytes = size_t(divide_up(count * int64_t(sizeof(T)) + 1, 64) * 64);
        void* block = std::aligned_alloc(64, bytes);
        if (!block) throw std::bad_alloc();
        blocks_.push_back(block);
        return static_cast<T*>(block);
    }
    Panel take_panel(int64_t channels) {
        return {take<float>(LANES * channels), take<float>(LANES)};
    }
    Boxes take_boxes(int64_t count) {
        const int64_t stride = count + LANES;
        return {stride, take<float>(SKETCH * stride), take<float>(SKETCH * stride),
                take<float>(stride)};
    }
    Boxes take_points(int64_t count) {  // boxes of no extent
        const int64_t stride = count + LANES;
        float* const at = take<float>(SKETCH * stride);
        return {stride, at, at, take<float>(stride)};
    }
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() {
        for (void* block : blocks_) std::free(block);
    }

private:
    std::vector<void*> blocks_;
};

void dpc_knn(const float* x, int64_t batch, int64_t N, int64_t C, const int64_t* counts,
             int64_t scales, int64_t k, int64_t threads, int64_t* labels) {
    const int64_t panels = divide_up(N, LANES);
    const int64_t block_panels = choose_block(batch, panels, threads);
    const int64_t blocks = divide_up(panels, block_panels);
    const int64_t length = divide_up(std::max<int64_t>(k, KEYS), KEYS) * KEYS;
    int64_t M = 0, assigned = 0;
    for (int64_t s = 0; s < scales; ++s) {
        M = std::max(M, counts[s]);
        if (counts[s] < N) assigned = std::max(assigned, counts[s]);
    }

    Arena arena;
    std::vector<Image> images(batch);
    for (int64_t b = 0; b < batch; ++b) {
        Image& image = images[b];
        image.x = x + b * N * C;
        image.N = N;
        image.C = C;
        image.k = k;
        image.length = int(length);
        image.M = M;
        image.assigned = assigned;
        image.origin = arena.take<float>(C);
        image.directions = arena.take<Sketch>(C);
        image.sketches = arena.take<float>(N * SKETCH);
        image.token = arena.take<int32_t>(N);
        image.place = arena.take<int32_t>(N);
        image.rows = arena.take<float>(N * C);
        image.norm2 = arena.take<float>(N);
        image.points = arena.take_points(N);
        image.panels = arena.take_boxes(panels);
        image.blocks = arena.take_boxes(blocks);
        image.neighbours = arena.take<Key>(N * length);
        image.reach = arena.take<float>(N + LANES);
        image.farthest = arena.take<float>(panels + LANES);
        image.densest = arena.take<int32_t>(panels);
        image.r = arena.take<double>(N);
        image.ranked = arena.take<Ranked>(N);
        image.order = arena.take<int32_t>(N);
        image.position = arena.take<int32_t>(N);
        image.delta2 = arena.take<double>(N);
        image.open = arena.take<int32_t>(N);
        image.centre_places = arena.take<int32_t>(assigned);
        image.centre_points = arena.take_points(assigned);
    }
    const int64_t columns = block_panels * LANES;
    const int64_t scratch_size = 2 * columns * columns;
    std::vector<std::vector<Panel>> scratch_panels(threads);  // those of two blocks
    std::vector<float*> scratches;
    for (int64_t t = 0; t < threads; ++t) {
        for (int64_t p = 0; p < 2 * block_panels; ++p) {
            scratch_panels[t].push_back(arena.take_panel(C));
        }
        scratches.push_back(arena.take<float>(scratch_size));
    }
    std::vector<std::mutex> locks(batch * blocks);
    // Pairs of blocks, near ones first: their tokens are the more alike, and what a token has found
    // keeps others out. Pairs that follow each other have no block in common, for which threads
    // would wait for each other.
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t i = 0; i < blocks; ++i) pairs.emplace_back(i, i);
    for (int64_t apart = 1; apart < blocks; ++apart) {
        for (int64_t odd = 0; odd < 2; ++odd) {
            for (int64_t i = 0; i + apart < blocks; ++i) {
                if (i / apart % 2 == odd) pairs.emplace_back(i, i + apart);
            }
        }
    }
    const int64_t number_of_pairs = int64_t(pairs.size());
    const auto block = [=](int64_t i) {
        return Block{i * block_panels, std::min(panels, (i + 1) * block_panels)};
    };
    const auto scales_of = [=](int64_t b) {
        return Scales{scales, counts, labels + b * N, batch * N};
    };
    int64_t arrived = 0;
    int64_t groups = 0;

#pragma omp parallel num_threads(int(threads))
    {
        int64_t thread;
#pragma omp atomic capture
        thread = arrived++;
        float* const columns = scratches[thread];
        const Panel* const block_of_panels = scratch_panels[thread].data();
        const Panel panel = block_of_panels[0];

        // Each loop waits for all threads before the next one starts.
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) {
            choose_origin(images[b], panel.values);
            arrange(images[b], panel.values, block_panels);
        }

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * blocks; ++t) {
            place_tokens(images[t / blocks], block(t % blocks), t % blocks, panel);
        }

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * number_of_pairs; ++t) {
            const int64_t b = t % batch;
            const auto [i, j] = pairs[t / batch];
            const std::lock_guard<std::mutex> first(locks[b * blocks + i]);
            std::unique_lock<std::mutex> second(locks[b * blocks + j], std::defer_lock);
            if (i != j) second.lock();
            if (i != j && images[b].sketched) {
                search_near(images[b], block(i), i, block(j), j, panel);
            } else {
                search_all(images[b], block(i), block(j), block_of_panels, columns);
            }
        }

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * blocks; ++t) {
            refine_neighbours(images[t / blocks], block(t % blocks));
        }

#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) {
            find_density(images[b]);
            find_nearest_denser(images[b]);
        }

#pragma omp single
        for (const Image& image : images) groups = std::max(groups, groups_of_seekers(image));

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * groups; ++t) {
            Image& image = images[t / groups];
            if (t % groups < groups_of_seekers(image)) {
                search_denser(image, t % groups, block_panels, panel);
            }
        }

#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) rank_centres(images[b]);

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * blocks; ++t) {
            assign(images[t / blocks], block(t % blocks), scales_of(t / blocks), panel);
        }

#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) keep_own_centre(images[b], scales_of(b));
    }
}

}  // namespace

// DPC-KNN of a batch of images. All arrays are contiguous.
//   x        (batch, tokens, channels)
//   counts   (scales,) numbers of clusters, from 1 to `tokens`
//   k        neighbours of the density, from 1 to `tokens`
//   threads  at most so many are used
//   labels   (scales, batch, tokens) the result: the rank of each token's centre
// Returns 0, or 1 where memory ran out.
extern "C" int clustr_dpc_knn(const float* x, int64_t batch, int64_t tokens, int64_t channels,
                              const int64_t* counts, int64_t scales, int64_t k, int64_t threads,
                              int64_t* labels) {
    try {
        dpc_knn(x, batch, tokens, channels, counts, scales, k, threads, labels);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
