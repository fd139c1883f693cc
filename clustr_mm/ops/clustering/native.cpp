// DPC-KNN on a CPU in float32: exact, O(N) memory, a whole batch of images in one call.
//
// The definition is in reference.py; its symbols and the order of its steps are those of this file:
//
//     search_neighbours    d2, and the nearest neighbours of every token
//     find_density         r, and the tokens in the order of their density
//     find_nearest_denser  delta2 of the tokens with a denser token among their neighbours
//     search_denser        delta2 of the others, the open ones
//     rank_centres         the centres
//     assign               every token's nearest centre, for all scales at once
//
// What makes it fast, beside what tiled.py does:
//
// * d2 is symmetric. A tile of it is computed once: it serves the tokens of its columns and,
//   transposed in registers, those of its rows.
// * Tiles come in blocks that stay in a core's cache and are searched there at once.
// * Neighbours are keys (distance, index) in a sorted list. No two keys are equal, so threads may
//   offer them in any order: of equal distances the lower index is nearer, always.
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

// ----------------------------------------------------------------------------- tokens in panels

// A panel: LANES tokens, stored channel by channel.
struct Panel {
    float* values;  // (C, LANES)
    float* norm2;   // (LANES,) |x|^2; +inf where there is no token
};

// Packs tokens into a panel.
//   x, origin  (N, C) tokens, and (C,) which is subtracted from them
//   index      the tokens to take; null for the token `first` and those after it
//   count      how many, from 1 to LANES
void pack(const float* x, const float* origin, int64_t channels, const int32_t* index,
          int64_t first, int64_t count, Panel panel) {
    const float* token[LANES];
    for (int l = 0; l < LANES; ++l) {
        const int64_t i = std::min<int64_t>(l, count - 1);
        token[l] = x + (index ? index[i] : first + i) * channels;
    }
    Vec norm2{};
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) {
        Vec tile[LANES];
        for (int l = 0; l < LANES; ++l) tile[l] = load(token[l] + c) - load(origin + c);
        transpose(tile);
        for (int j = 0; j < LANES; ++j) {
            store(panel.values + (c + j) * LANES, tile[j]);
            norm2 += tile[j] * tile[j];
        }
    }
    for (; c < channels; ++c) {
        Vec values;
        for (int l = 0; l < LANES; ++l) values[l] = token[l][c] - origin[c];
        store(panel.values + c * LANES, values);
        norm2 += values * values;
    }
    for (int64_t l = count; l < LANES; ++l) norm2[l] = INF;
    store(panel.norm2, norm2);
}

// C d2 between the first ROWS tokens of one panel and the LANES tokens of another.
template <int ROWS>
inline void distance2(Panel rows, Panel lanes, int64_t channels, Vec (&tile)[LANES]) {
    Vec dot[ROWS] = {};
    const float* a = rows.values;
    const float* b = lanes.values;
    for (int64_t c = 0; c < channels; ++c, a += LANES, b += LANES) {
        const Vec values = load(b);
#pragma GCC unroll 16
        for (int i = 0; i < ROWS; ++i) dot[i] += a[i] * values;
    }
    const Vec norm2 = load(lanes.norm2);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if (i >= ROWS) {
            tile[i] = Vec{};
            continue;
        }
        const Vec full = (rows.norm2[i] + norm2) - 2 * dot[i];
        tile[i] = full < 0 ? Vec{} : full;  // what is not a number stays so
    }
}

// The same for the first `count` tokens; the rows after them have no meaning.
inline void distance2(Panel rows, int64_t count, Panel lanes, int64_t channels,
                      Vec (&tile)[LANES]) {
    switch (divide_up(count, LANES / 4)) {
        case 1: return distance2<LANES / 4>(rows, lanes, channels, tile);
        case 2: return distance2<LANES / 2>(rows, lanes, channels, tile);
        case 3: return distance2<LANES / 4 * 3>(rows, lanes, channels, tile);
        default: return distance2<LANES>(rows, lanes, channels, tile);
    }
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

// Offers tokens as neighbours to the LANES tokens of a panel.
//   columns  (rows, LANES) their distances
//   first    index of the token of row 0; the others follow it
//   lists    (LANES, length) the neighbours of the panel's tokens so far
//   reach    (LANES,) the largest distance of each list; below 0 where there is no token
void offer(const float* columns, int64_t rows, int64_t first, Key* lists, int length,
           float* reach) {
    Vec limit = load(reach);
    const bool some_list_has_room = lanes_up_to(broadcast(INF), limit);
    if (some_list_has_room && length == 8) {
        limit = smaller(limit, bound_of_8_smallest(columns, rows));
    }
    for (int64_t i = 0; i < rows; ++i) {
        uint32_t near = lanes_up_to(load(columns + i * LANES), limit);
        for (; near; near &= near - 1) {
            const int l = __builtin_ctz(near);
            insert(key_of(columns[i * LANES + l], first + i), lists + l * length, length);
        }
    }
    for (int l = 0; l < LANES; ++l) {
        const Key last = lists[l * length + length - 1];
        if (last != NONE) reach[l] = std::min(reach[l], distance2_of(last));
    }
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

struct Image {
    const float* x;    // (N, C)
    int64_t N, C, k;   // tokens, channels, neighbours of the density
    int length;        // neighbours kept of each token, the token itself among them
    int64_t M;         // centres; those of the smaller scales are the first of them
    int64_t assigned;  // centres that tokens are assigned to: 0 where all tokens are centres

    float* origin;        // (C,)
    Panel tokens;         // all panels, one after the other
    Key* neighbours;      // (N, length)
    float* reach;         // (N,) distance of the last neighbour
    double* r;            // (N,)
    Ranked* ranked;       // (N,)
    int32_t* order;       // (N,) tokens by density, then the centres by rank
    int32_t* position;    // (N,) of the tokens in the order of density
    double* delta2;       // (N,)
    int32_t* open;        // (opens,) tokens without a denser neighbour, in the order of density
    int64_t opens;
    Panel centres;        // all panels of the centres, by rank

    Panel panel(const Panel& all, int64_t p) const {
        return {all.values + p * LANES * C, all.norm2 + p * LANES};
    }
    int64_t tokens_of_panel(int64_t p) const { return std::min<int64_t>(LANES, N - p * LANES); }
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

void pack_tokens(Image& image, Block block) {
    for (int64_t p = block.first; p < block.end; ++p) {
        pack(image.x, image.origin, image.C, nullptr, p * LANES, image.tokens_of_panel(p),
             image.panel(image.tokens, p));
        for (int64_t i = p * LANES; i < (p + 1) * LANES; ++i) {
            image.reach[i] = i < image.N ? INF : -1.f;
            std::fill_n(image.neighbours + i * image.length, image.length, NONE);
        }
    }
}

// Makes the tokens of two blocks neighbours of each other, or those of one block among themselves.
//   scratch  two blocks of columns: for each panel (tokens of the other block, LANES)
//   lock_*   guard the neighbours of each block
void search_neighbours(Image& image, Block a, Block b, float* scratch, std::mutex& lock_a,
                       std::mutex& lock_b) {
    const bool same = a.first == b.first;
    const int64_t panels = std::max(a.end - a.first, b.end - b.first);
    const int64_t column = panels * LANES * LANES;  // numbers of a panel's column
    float* columns_a = scratch;
    float* columns_b = same ? scratch : scratch + panels * column;
    for (int64_t i = a.first; i < a.end; ++i) {
        for (int64_t j = std::max(i, b.first); j < b.end; ++j) {
            Vec tile[LANES];
            distance2(image.panel(image.tokens, j), image.tokens_of_panel(j),
                      image.panel(image.tokens, i), image.C, tile);
            float* rows = columns_a + (i - a.first) * column + (j - b.first) * LANES * LANES;
            for (int l = 0; l < LANES; ++l) store(rows + l * LANES, tile[l]);
            if (i == j) continue;
            transpose(tile);
            rows = columns_b + (j - b.first) * column + (i - a.first) * LANES * LANES;
            for (int l = 0; l < LANES; ++l) store(rows + l * LANES, tile[l]);
        }
    }
    const auto offer_all = [&image, column](Block to, Block from, const float* columns) {
        const int64_t first = from.first * LANES;
        const int64_t rows = std::min(from.end * LANES, image.N) - first;
        for (int64_t p = to.first; p < to.end; ++p) {
            offer(columns + (p - to.first) * column, rows, first,
                  image.neighbours + p * LANES * image.length, image.length,
                  image.reach + p * LANES);
        }
    };
    {
        const std::lock_guard<std::mutex> guard(lock_a);
        offer_all(a, b, columns_a);
    }
    if (!same) {
        const std::lock_guard<std::mutex> guard(lock_b);
        offer_all(b, a, columns_b);
    }
}

// Neighbours nearer than this share of their squared norms are nearly equal tokens: the products
// above leave of their distance little but rounding, which would order their densities.
constexpr float NEARLY_EQUAL = 1.f / 64;

// Takes the distances of nearly equal neighbours anew, by differences.
void refine_neighbours(Image& image, Block block) {
    const int64_t C = image.C;
    for (int64_t i = block.first * LANES; i < std::min(block.end * LANES, image.N); ++i) {
        Key* const list = image.neighbours + i * image.length;
        const float* const a = image.x + i * C;
        for (int n = 0; n < image.length && list[n] != NONE; ++n) {
            const int32_t j = index_of(list[n]);
            const float norms = image.tokens.norm2[i] + image.tokens.norm2[j];
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
        double sum = 0;
        for (int64_t j = 0; j < image.k; ++j) sum += distance2_of(nearest[j]) / double(image.C);
        image.r[i] = -sum / double(image.k);
        image.ranked[i] = {ordered(image.r[i]), int32_t(i)};
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
        const int32_t token = image.order[i];
        const Key* nearest = image.neighbours + token * int64_t(image.length);
        const Key* found = std::find_if(nearest, nearest + image.length, [&](Key key) {
            return key == NONE || image.position[index_of(key)] < i;
        });
        if (found < nearest + image.length && *found != NONE) {
            image.delta2[token] = distance2_of(*found) / double(image.C);
        } else {
            image.delta2[token] = INF;  // of the densest token it remains so
            if (i > 0) image.open[image.opens++] = token;
        }
    }
}

// Panels of open tokens that one task searches for.
constexpr int64_t OPEN_PANELS = 8;

int64_t open_groups(const Image& image) {
    return divide_up(image.opens, OPEN_PANELS * LANES);
}

// delta2 of a group of open tokens: the nearest of all that come before them in density.
//   scratch  OPEN_PANELS + 1 panels
void search_denser(Image& image, int64_t group, float* scratch) {
    const int32_t* open = image.open + group * OPEN_PANELS * LANES;
    const int64_t count = std::min(image.opens - group * OPEN_PANELS * LANES, OPEN_PANELS * LANES);
    const int64_t panels = divide_up(count, LANES);
    const Panel seekers{scratch + (OPEN_PANELS + 1) * LANES, scratch};
    const Panel denser = image.panel(seekers, OPEN_PANELS);
    IntVec position[OPEN_PANELS];    // of the seekers; 0 in the lanes without one
    int64_t last[OPEN_PANELS] = {};  // largest position of a panel
    Vec least[OPEN_PANELS];
    for (int64_t p = 0; p < panels; ++p) {
        const int32_t* tokens = open + p * LANES;
        const int64_t lanes = std::min<int64_t>(LANES, count - p * LANES);
        pack(image.x, image.origin, image.C, tokens, 0, lanes, image.panel(seekers, p));
        position[p] = IntVec{};
        for (int64_t l = 0; l < lanes; ++l) position[p][l] = image.position[tokens[l]];
        last[p] = position[p][lanes - 1];
        least[p] = broadcast(INF);
    }
    for (int64_t first = 0; first < last[panels - 1]; first += LANES) {
        const int64_t rows = std::min<int64_t>(LANES, last[panels - 1] - first);
        pack(image.x, image.origin, image.C, image.order + first, 0, rows, denser);
        for (int64_t p = panels - 1; p >= 0 && first < last[p]; --p) {
            Vec tile[LANES];
            distance2(denser, rows, image.panel(seekers, p), image.C, tile);
            for (int64_t j = 0; j < rows; ++j) {
                const IntVec is_denser = int32_t(first + j) - IntVec{} < position[p];
                least[p] = (is_denser & (tile[j] < least[p])) ? tile[j] : least[p];
            }
        }
    }
    for (int64_t i = 0; i < count; ++i) {
        image.delta2[open[i]] = least[i / LANES][i % LANES] / double(image.C);
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
    for (int64_t first = 0; first < image.assigned; first += LANES) {
        pack(image.x, image.origin, image.C, image.order + first, 0,
             std::min<int64_t>(LANES, image.assigned - first),
             image.panel(image.centres, first / LANES));
    }
}

// The clusters of all scales: counts (S,), and labels (S, B, N), here of one image.
struct Scales {
    int64_t number;
    const int64_t* counts;
    int64_t* labels;
    int64_t stride;  // from a scale's labels to the next one's
};

// Every token's nearest centre: of the first counts[s] centres for each scale s.
void assign(const Image& image, Block block, Scales scales) {
    for (int64_t p = block.first; image.assigned && p < block.end; ++p) {
        Vec least = broadcast(INF);
        IntVec label{};
        for (int64_t rank = 0; rank < image.assigned;) {
            const int64_t rows = std::min<int64_t>(LANES, image.assigned - rank);
            Vec tile[LANES];
            distance2(image.panel(image.centres, rank / LANES), rows,
                      image.panel(image.tokens, p), image.C, tile);
            for (int64_t j = 0; j < rows; ++j, ++rank) {
                const IntVec nearer = tile[j] < least;  // on ties the lower rank stays
                least = nearer ? tile[j] : least;
                label = nearer ? int32_t(rank) - IntVec{} : label;
                for (int64_t s = 0; s < scales.number; ++s) {
                    if (scales.counts[s] != rank + 1) continue;
                    int64_t* labels = scales.labels + s * scales.stride + p * LANES;
                    for (int64_t l = 0; l < image.tokens_of_panel(p); ++l) labels[l] = label[l];
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
    Panel take_panels(int64_t panels, int64_t channels) {
        return {take<float>(panels * LANES * channels), take<float>(panels * LANES)};
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
        image.tokens = arena.take_panels(panels, C);
        image.neighbours = arena.take<Key>(panels * LANES * length);
        image.reach = arena.take<float>(panels * LANES);
        image.r = arena.take<double>(N);
        image.ranked = arena.take<Ranked>(N);
        image.order = arena.take<int32_t>(N);
        image.position = arena.take<int32_t>(N);
        image.delta2 = arena.take<double>(N);
        image.open = arena.take<int32_t>(N);
        image.centres = arena.take_panels(divide_up(assigned, LANES), C);
    }
    const int64_t columns = block_panels * LANES;
    const int64_t scratch_size =
        std::max(2 * columns * columns, (OPEN_PANELS + 1) * LANES * (C + 1));
    std::vector<float*> scratches;
    for (int64_t t = 0; t < threads; ++t) scratches.push_back(arena.take<float>(scratch_size));
    std::vector<std::mutex> locks(batch * blocks);
    // Pairs of blocks, near ones first: of an image's tokens the near ones are the more alike, and
    // short lists turn away more.
    std::vector<std::pair<int64_t, int64_t>> pairs;
    for (int64_t apart = 0; apart < blocks; ++apart) {
        for (int64_t i = 0; i + apart < blocks; ++i) pairs.emplace_back(i, i + apart);
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
        float* const scratch = scratches[thread];

        // Each loop waits for all threads before the next one starts.
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) choose_origin(images[b], scratch);

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * blocks; ++t) {
            pack_tokens(images[t / blocks], block(t % blocks));
        }

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * number_of_pairs; ++t) {
            const int64_t b = t / number_of_pairs;
            const int64_t i = pairs[t % number_of_pairs].first;
            const int64_t j = pairs[t % number_of_pairs].second;
            search_neighbours(images[b], block(i), block(j), scratch, locks[b * blocks + i],
                              locks[b * blocks + j]);
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
        for (const Image& image : images) groups = std::max(groups, open_groups(image));

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * groups; ++t) {
            Image& image = images[t / groups];
            if (t % groups < open_groups(image)) search_denser(image, t % groups, scratch);
        }

#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < batch; ++b) rank_centres(images[b]);

#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < batch * blocks; ++t) {
            assign(images[t / blocks], block(t % blocks), scales_of(t / blocks));
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
