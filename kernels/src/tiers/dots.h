// What products of weights and codes are added up in. Part of tier.h.
//
// Without instructions that add four products to 32 bits at once, products of small weights are added up in 16 bits over
// so many columns as these hold, and only then in 32. The sums are of integers, so they are the same.

constexpr int prefetch_distance = 2048;  // bytes: about what one core's reads need to stay in flight

#if defined(EDGE_SHORT_SUMS)
constexpr bool has_short_sums = true;
// A pair of int4 products is at most 2 x 15 x 127, and a word of 4 columns adds one to a 16-bit sum: eight words fit.
template <int bits>
constexpr int64_t short_columns = bits == 4 ? 32 : 128;
#else
constexpr bool has_short_sums = false;
template <int bits>
constexpr int64_t short_columns = 0;
using Shorts = Ints;
inline Shorts no_shorts() { return set_int(0); }
#endif

constexpr int64_t piece_columns = short_columns<4>;  // of unpacked codes, whatever they were

// Weights of so many bits.
template <int bits>
constexpr bool in_shorts = has_short_sums && bits < 8;

// Where sums are short, a group of 32 columns has as many instructions beside its products as for them: the loops are
// 15 % faster where the compiler knows the number.
constexpr int known_group = has_short_sums ? pad_columns : 0;

// Adds the integer products of so many columns of T tiles with a batch of M tokens to sum[tile][token][chain], which
// are 32-bit or short sums. `at` and `codes` move on.
template <int bits, int M, int T, int chains, class Sum>
__attribute__((always_inline)) inline void add_products_of(const uint8_t *(&at)[T], int64_t columns,
                                                           const int8_t *&codes, Sum (&sum)[T][M][chains]) {
    constexpr int field_count = 8 / bits;
    constexpr bool in_place = fields_in_place && bits < 8 && chains > 1;
    for (int64_t column = 0; column < columns; column += 8 * field_count) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            Bytes bytes[T];
#pragma GCC unroll 2
            for (int i = 0; i < T; ++i) {
                prefetch(at[i] + prefetch_distance);
                bytes[i] = load_bytes(at[i]);
                at[i] += 64;
            }
#pragma GCC unroll 4
            for (int f = 0; f < field_count; ++f) {
                const int chain = (j * field_count + f) % chains;
                Bytes weights[T];
#pragma GCC unroll 2
                for (int i = 0; i < T; ++i) {
                    weights[i] = !in_place    ? fields<bits>(bytes[i], f)
                                 : f < chains ? field_in_place<bits>(bytes[i], f)
                                              : field_in_place<bits>(fields<4>(bytes[i], 1), f % chains);
                }
                const auto add_to = [](Sum &to, Bytes w, auto x) __attribute__((always_inline)) {
                    if constexpr (bits == 8) {
                        to = dot_biased(to, w, x);
                    } else {
                        to = dot_small(to, w, x);
                    }
                };
#pragma GCC unroll 8
                for (int t = 0; t < M; ++t, codes += 4) {
                    if (T == 1) {
                        add_to(sum[0][t][chain], weights[0], codes);
                        continue;
                    }
                    const Word x = load_word(codes);
#pragma GCC unroll 2
                    for (int i = 0; i < T; ++i) add_to(sum[i][t][chain], weights[i], x);
                }
            }
        }
    }
}

// The same, to 32-bit sums, in whichever way.
template <int bits, int M, int T, int chains>
__attribute__((always_inline)) inline void add_codes(const uint8_t *(&at)[T], int64_t columns,
                                                     const int8_t *codes, Ints (&sum)[T][M][chains]) {
    if constexpr (!in_shorts<bits>) {
        add_products_of<bits>(at, columns, codes, sum);
    } else {
        for (int64_t first = 0; first < columns; first += short_columns<bits>) {
            const int64_t left = columns - first;
            Shorts part[T][M][1];
#pragma GCC unroll 2
            for (int i = 0; i < T; ++i) {
#pragma GCC unroll 8
                for (int t = 0; t < M; ++t) part[i][t][0] = no_shorts();
            }
            add_products_of<bits>(at, left < short_columns<bits> ? left : short_columns<bits>, codes, part);
#pragma GCC unroll 2
            for (int i = 0; i < T; ++i) {
#pragma GCC unroll 8
                for (int t = 0; t < M; ++t) sum[i][t][0] = add(sum[i][t][0], part[i][t][0]);
            }
        }
    }
}
