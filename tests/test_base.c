/* test_base.c - what src/base promises: messages, memory, random numbers, small floats, checksums, numbers in text.
 * Files and JSON are in test_base_files.c. The reference of binary16 is the processor's own F16C where it has it.
 */
#include "base/base.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* ---- status ---- */

START_TEST(every_status_has_a_name)
{
    for (int s = 0; s < NB_STATUS_COUNT; s++)
        ck_assert_uint_gt(strlen(nb_status_name((status)s)), 0);
    ck_assert_str_eq(nb_status_name(NB_STATUS_COUNT), "unknown status");
}
END_TEST

START_TEST(messages_gain_context_and_are_cut)
{
    ck_assert_int_eq(nb_fail(NB_FORMAT, "tensor %d: found %s", 3, "f16"), NB_FORMAT);
    ck_assert_int_eq(nb_fail_in(NB_IO, "%s", "model.bin"), NB_IO);
    ck_assert_str_eq(nb_fail_message(), "model.bin: tensor 3: found f16");
    nb_fail(NB_USAGE, "again: %s", nb_fail_message());
    ck_assert_str_eq(nb_fail_message(), "again: model.bin: tensor 3: found f16");
    char long_text[3000];
    memset(long_text, 'x', sizeof long_text);
    long_text[sizeof long_text - 1] = 0;
    nb_fail(NB_IO, "%s", long_text);
    ck_assert_uint_eq(strlen(nb_fail_message()), 1023);
    nb_fail_in(NB_IO, "file");
    ck_assert_uint_eq(strlen(nb_fail_message()), 1023);
    ck_assert_int_eq(strncmp(nb_fail_message(), "file: xxx", 9), 0);
}
END_TEST

/* ---- memory ---- */

static bool filled_with(const unsigned char *p, size_t bytes, unsigned char value)
{
    while (bytes && p[bytes - 1] == value)
        bytes--;
    return bytes == 0;
}

START_TEST(arena_blocks_are_aligned_disjoint_and_reused)
{
    static const size_t sizes[] = {0, 1, 63, 64, 65, 4096, (1 << 20) - 64, 1 << 20, (1 << 20) + 1, 3 << 20, 7};
    enum { N = sizeof sizes / sizeof *sizes };
    nb_arena a = {0};
    unsigned char *first[N], *p[N];
    for (int round = 0; round < 3; round++) {
        size_t used = 0;
        for (int i = 0; i < N; i++) {
            p[i] = nb_arena_alloc(&a, sizes[i]);
            ck_assert_ptr_nonnull(p[i]);
            ck_assert_uint_eq((uintptr_t)p[i] % 64, 0);
            memset(p[i], i + 1, sizes[i]);
            used += sizes[i];
        }
        for (int i = 0; i < N; i++)
            ck_assert(filled_with(p[i], sizes[i], (unsigned char)(i + 1)));
        ck_assert_uint_ge(a.used, used);
        if (round == 0)
            memcpy(first, p, sizeof p);
        ck_assert_mem_eq(first, p, sizeof p);
        nb_arena_reset(&a);
        ck_assert_uint_eq(a.used, 0);
        ck_assert_uint_ge(a.peak, used);
    }
    ck_assert_str_eq(nb_arena_string(&a, "layers.0"), "layers.0");
    ck_assert_ptr_null(nb_arena_alloc(&a, SIZE_MAX));
    ck_assert_ptr_null(nb_arena_alloc(&a, SIZE_MAX / 2));
    nb_arena_free(&a);
    nb_arena_free(&a);
    ck_assert_ptr_null(a.first);
}
END_TEST

/* Blocks of all sizes taken and given back in random order: no two overlap, and what is whole again is taken whole again. */
START_TEST(pool_blocks_are_aligned_disjoint_and_reused)
{
    enum { N = 40, ROUNDS = 3000 };
    nb_pool p = {0};
    unsigned char *at[N] = {0};
    size_t bytes[N] = {0}, peak = 0, before = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const int i = (int)(nb_random(1, 1, (uint64_t)round) % N);
        if (at[i]) {
            ck_assert(filled_with(at[i], bytes[i], (unsigned char)(i + 1)));
            nb_pool_give(&p, at[i], bytes[i]);
            at[i] = NULL;
            continue;
        }
        bytes[i] = (size_t)(nb_random(1, 2, (uint64_t)round) % (1u << nb_random(1, 3, (uint64_t)round) % 17));
        ck_assert_ptr_nonnull(at[i] = nb_pool_take(&p, bytes[i]));
        ck_assert_uint_eq((uintptr_t)at[i] % 64, 0);
        memset(at[i], i + 1, bytes[i]);
        peak = p.used > peak ? p.used : peak;
    }
    for (int i = 0; i < N; i++)
        nb_pool_give(&p, at[i], bytes[i]);
    ck_assert(p.used == 0 && p.peak == peak);
    ck_assert_int_eq(p.n, 1); /* of the first slab, 1 MB: more was never taken at once */
    before = p.block[0].bytes;
    ck_assert_ptr_nonnull(at[0] = nb_pool_take(&p, before));
    ck_assert_int_eq(p.n, 0);
    ck_assert_ptr_nonnull(at[1] = nb_pool_take(&p, 5 * before)); /* a slab of its own */
    nb_pool_reset(&p);
    ck_assert(p.used == 0 && p.n == 1);
    ck_assert_ptr_nonnull(at[0] = nb_pool_take(&p, before)); /* both slabs in one */
    ck_assert_ptr_eq(nb_pool_take(&p, 5 * before), at[0] + (before + 63) / 64 * 64);
    ck_assert_ptr_null(nb_pool_take(&p, SIZE_MAX));
    nb_pool_give(&p, NULL, 5);
    nb_pool_free(&p);
    ck_assert_ptr_null(p.slabs);
}
END_TEST

START_TEST(allocation_refuses_overflow_with_a_message)
{
    ck_assert_ptr_null(nb_alloc(SIZE_MAX / 4, 8));
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "out of memory"));
    ck_assert_ptr_null(nb_alloc_zeroed((size_t)1 << 62, 4));
    ck_assert_ptr_null(nb_alloc_aligned(PTRDIFF_MAX, 2));
    ck_assert_ptr_null(nb_resize(NULL, SIZE_MAX, SIZE_MAX));
    void *p[] = {nb_alloc(0, 8), nb_alloc_zeroed(3, 0), nb_alloc_aligned(0, 0), nb_resize(NULL, 0, 1), nb_string("")};
    for (int i = 0; i < COUNT(p); i++)
        ck_assert_ptr_nonnull(p[i]);
    ck_assert_uint_eq((uintptr_t)p[2] % 64, 0);
    for (int i = 0; i < COUNT(p); i++)
        free(p[i]);
    float *zeros = nb_alloc_zeroed(100, sizeof *zeros);
    zeros = nb_resize(zeros, 200, sizeof *zeros);
    for (int i = 0; i < 100; i++)
        ck_assert_float_eq(zeros[i], 0);
    free(zeros);
}
END_TEST

/* ---- random numbers ---- */

START_TEST(random_numbers_are_these)
{
    /* Fixed for good: checkpoints and token files name a seed. Computed by the formula in Python integers. */
    static const struct {
        uint64_t seed, stream, i, want;
    } rows[] = {
        {0, 0, 0, 0xE220A8397B1DCDAFu}, /* splitmix64's published first number */
        {0, 0, 1, 0x6E789E6AA1B965F4u},
        {1, 2, 3, 0xD5179B9223C27D8Au},
    };
    for (int r = 0; r < COUNT(rows); r++)
        ck_assert_uint_eq(nb_random(rows[r].seed, rows[r].stream, rows[r].i), rows[r].want);
}
END_TEST

START_TEST(random_moments_are_right)
{
    enum { N = 200000 };
    double sum = 0, square = 0, unit = 0, fourth = 0;
    int good = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = nb_random_unit(7, 1, i), z = nb_random_normal(7, 2, i);
        good += u >= 0 && u < 1 && isfinite(z);
        unit += u;
        sum += z;
        square += z * z;
        fourth += z * z * z * z;
    }
    ck_assert_int_eq(good, N);
    ck_assert_double_eq_tol(unit / N, 0.5, 0.003); /* 4.6 standard errors each */
    ck_assert_double_eq_tol(sum / N, 0, 0.0103);
    ck_assert_double_eq_tol(square / N, 1, 0.0146);
    ck_assert_double_eq_tol(fourth / N, 3, 0.1);
}
END_TEST

START_TEST(permutations_hold_every_number_once)
{
    static const int64_t sizes[] = {0, 1, 2, 7, 1000};
    for (int s = 0; s < COUNT(sizes); s++) {
        int64_t n = sizes[s], p[1000], same = 0;
        bool seen[1000] = {false};
        nb_random_permutation(p, n, 5, 9);
        for (int64_t i = 0; i < n; i++) {
            ck_assert(p[i] >= 0 && p[i] < n && !seen[p[i]]);
            seen[p[i]] = true;
            same += p[i] == i;
        }
        ck_assert(n < 7 || same < n / 2);
    }
    int count[6] = {0}; /* all 6 orders of 3 come equally often */
    for (uint64_t stream = 0; stream < 6000; stream++) {
        int64_t p[3];
        nb_random_permutation(p, 3, 1, stream);
        count[p[0] * 2 + (p[1] > p[2])]++;
    }
    for (int i = 0; i < 6; i++)
        ck_assert(count[i] > 850 && count[i] < 1150); /* 5 standard deviations */
}
END_TEST

/* ---- small floats ---- */

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The value of a binary16 by its definition. */
static float half_by_definition(uint16_t h)
{
    int exponent = h >> 10 & 31, fraction = h & 0x3FF;
    float x = exponent ? ldexpf((float)(fraction + 1024), exponent - 25) : ldexpf((float)fraction, -24);
    if (exponent == 31)
        x = fraction ? NAN : INFINITY;
    return copysignf(x, h & 0x8000 ? -1.0f : 1.0f);
}

/* A check inside Check costs microseconds; these loops count what is wrong and check the count. */
START_TEST(every_half_reads_as_defined_and_returns)
{
    int wrong = 0;
    for (uint32_t h = 0; h <= 0xFFFF; h++) {
        float x = nb_half_to((uint16_t)h), want = half_by_definition((uint16_t)h);
        if (isnan(want))
            wrong += !isnan(x) || nb_half_from(x) != (h | 0x200); /* quiet */
        else
            wrong += bits_of(x) != bits_of(want) || nb_half_from(x) != h;
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

START_TEST(halves_round_to_nearest_even)
{
    int wrong = 0;
    for (uint16_t h = 0; h < 0x7BFF; h++) { /* between every finite half and the next: the middle and its neighbours */
        float middle = (half_by_definition(h) + half_by_definition((uint16_t)(h + 1))) * 0.5f;
        wrong += nb_half_from(middle) != ((h + 1) & ~1);
        wrong += nb_half_from(nextafterf(middle, 0)) != h;
        wrong += nb_half_from(nextafterf(middle, 1e9f)) != h + 1;
        wrong += nb_half_from(-middle) != (((h + 1) & ~1) | 0x8000);
    }
    ck_assert_int_eq(wrong, 0);
    ck_assert_uint_eq(nb_half_from(65519.996f), 0x7BFF);
    ck_assert_uint_eq(nb_half_from(65520.0f), 0x7C00);
    ck_assert_uint_eq(nb_half_from(-1e30f), 0xFC00);
    ck_assert_uint_eq(nb_half_from(1e-45f), 0);
    ck_assert_uint_eq(nb_half_from(-0.0f), 0x8000);
}
END_TEST

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
__attribute__((target("avx,f16c"))) static uint16_t processor_half(float f)
{
    return (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(f), _MM_FROUND_TO_NEAREST_INT), 0);
}
static bool has_processor_half(void)
{
    return __builtin_cpu_supports("avx2"); /* every processor with AVX2 has F16C */
}
#else
static uint16_t processor_half(float f)
{
    return nb_half_from(f);
}
static bool has_processor_half(void)
{
    return false;
}
#endif

START_TEST(halves_equal_the_processors)
{
    if (!has_processor_half()) {
        puts("skipped halves_equal_the_processors: no F16C here");
        return;
    }
    for (uint64_t u = 0; u <= UINT32_MAX; u += 1021) { /* a prime: every exponent, all kinds of fractions */
        float f = float_of((uint32_t)u);
        if (nb_half_from(f) != processor_half(f))
            ck_abort_msg("%08x: %04x, wanted %04x", (unsigned)u, nb_half_from(f), processor_half(f));
    }
}
END_TEST

START_TEST(bf16_rounds_to_nearest_even)
{
    int wrong = 0;
    for (uint32_t h = 0; h <= 0xFFFF; h++) {
        float x = nb_bf16_to((uint16_t)h);
        wrong += bits_of(x) != h << 16 || nb_bf16_from(x) != (isnan(x) ? h | 0x40 : h);
        if (isnan(x) || isinf(x))
            continue;
        wrong += nb_bf16_from(float_of(h << 16 | 0x7FFF)) != h;
        wrong += nb_bf16_from(float_of(h << 16 | 0x8000)) != ((h + 1) & ~1u);
        wrong += nb_bf16_from(float_of(h << 16 | 0x8001)) != h + 1;
    }
    ck_assert_int_eq(wrong, 0);
    ck_assert(isnan(nb_bf16_to(nb_bf16_from(float_of(0x7F800001)))));
}
END_TEST

/* ---- checksums ---- */

START_TEST(checksums_match_their_published_values)
{
    unsigned char ones[32], rising[32], falling[32];
    for (int i = 0; i < 32; i++) {
        ones[i] = 0xFF;
        rising[i] = (unsigned char)i;
        falling[i] = (unsigned char)(31 - i);
    }
    ck_assert_uint_eq(nb_crc32c(0, "123456789", 9), 0xE3069283u);
    ck_assert_uint_eq(nb_crc32c(0, "", 0), 0);
    ck_assert_uint_eq(nb_crc32c(0, ones, 32), 0x62A8AB43u); /* RFC 3720, B.4 */
    ck_assert_uint_eq(nb_crc32c(0, rising, 32), 0x46DD794Eu);
    ck_assert_uint_eq(nb_crc32c(0, falling, 32), 0x113FDB5Cu);
    ck_assert_uint_eq(nb_hash(NB_HASH_START, "", 0), 0xCBF29CE484222325u);
    ck_assert_uint_eq(nb_hash(NB_HASH_START, "a", 1), 0xAF63DC4C8601EC8Cu); /* draft-eastlake-fnv */
    ck_assert_uint_eq(nb_hash(NB_HASH_START, "foobar", 6), 0x85944171F73967E8u);
}
END_TEST

START_TEST(crc_of_long_data_is_that_of_its_pieces)
{
    enum { BYTES = (1 << 20) + 77, PIECE = 1001 };
    unsigned char *data = nb_alloc(BYTES, 1);
    for (int64_t i = 0; i < BYTES; i++)
        data[i] = (unsigned char)nb_random(7, 0, (uint64_t)i);
    uint32_t wanted = 5;
    for (size_t at = 0; at < BYTES; at += PIECE)
        wanted = nb_crc32c(wanted, data + at, BYTES - at < PIECE ? BYTES - at : PIECE);
    ck_assert_uint_eq(nb_crc32c(5, data, BYTES), wanted);
    free(data);
}
END_TEST

START_TEST(memory_of_zeros_is_zero_though_it_was_used)
{
    enum { BYTES = (3 << 20) + 129 };
    for (int round = 0; round < 2; round++) {
        unsigned char *p = nb_alloc_aligned_zeroed(BYTES, 1);
        ck_assert_uint_eq((uintptr_t)p % 64, 0);
        int64_t zeros = 0;
        for (int64_t i = 0; i < BYTES; i++)
            zeros += p[i] == 0;
        ck_assert_int_eq(zeros, BYTES);
        memset(p, 0xFF, BYTES);
        free(p);
        free(memset(nb_alloc_aligned(BYTES, 1), 0xFF, BYTES));
    }
}
END_TEST

START_TEST(crc_continues_and_sees_every_bit)
{
    unsigned char data[100];
    for (int i = 0; i < COUNT(data); i++)
        data[i] = (unsigned char)nb_random(1, 0, (uint64_t)i);
    uint32_t whole = nb_crc32c(0, data, sizeof data);
    for (size_t cut = 0; cut <= sizeof data; cut++)
        ck_assert_uint_eq(nb_crc32c(nb_crc32c(0, data, cut), data + cut, sizeof data - cut), whole);
    for (size_t bit = 0; bit < 8 * sizeof data; bit++) {
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        ck_assert_uint_ne(nb_crc32c(0, data, sizeof data), whole);
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
}
END_TEST

/* ---- numbers in text ---- */

static const struct {
    const char *text;
    int64_t want; /* -1: refused */
} counts[] = {
    {"0", 0},           {"256", 256},    {"400k", 400000},
    {"3M", 3000000},    {"1.5k", 1500},  {"0.3G", 300000000},
    {"2.5Ki", 2560},    {"64Ki", 65536}, {"1Mi", 1048576},
    {"1.50", -1},       {"1.0", 1},      {"0.25Gi", 268435456},
    {"0.0001k", -1},    {"0.001k", 1},   {"9223372036854775807", INT64_MAX},
    {"", -1},           {"k", -1},       {"9223372036854775808", -1},
    {"-1", -1},         {"+1", -1},      {"9223372036854776k", -1},
    {" 1", -1},         {"1 ", -1},      {"1K", -1},
    {"1kk", -1},        {"1e6", -1},     {"0x10", -1},
    {"1.2.3", -1},      {".5k", -1},     {"99999999999999999999999999", -1},
    {"0.500000k", 500},
};

START_TEST(counts_are_exact)
{
    int64_t n = -1;
    status s = nb_parse_count(&n, counts[_i].text);
    ck_assert_int_eq(n, counts[_i].want);
    ck_assert_int_eq(s, counts[_i].want < 0 ? NB_USAGE : NB_OK);
}
END_TEST

START_TEST(numbers_use_the_whole_text)
{
    static const char *const bad[] = {"", "x", "1x", " 1", "1 ", "nan", "inf", "1e999", "--1"};
    double x = 7;
    for (int i = 0; i < COUNT(bad); i++)
        ck_assert_int_eq(nb_parse_number(&x, bad[i]), NB_USAGE);
    ck_assert_double_eq(x, 7);
    ck_assert_int_eq(nb_parse_number(&x, "-2.5e-3"), NB_OK);
    ck_assert_double_eq(x, -0.0025);
}
END_TEST

/* ---- progress ---- */

static bool stop_at_three(void *ctx, int64_t done, int64_t total, const char *text)
{
    ++*(int *)ctx;
    return done < 3 && total == 5 && *text;
}

START_TEST(progress_stops_the_work)
{
    int calls = 0;
    nb_progress p = {stop_at_three, &calls}, silent = {0};
    ck_assert(nb_progress_report(&p, 2, 5, "kl 1"));
    ck_assert(!nb_progress_report(&p, 3, 5, "kl 1"));
    ck_assert_int_eq(calls, 2);
    ck_assert(nb_progress_report(NULL, 1, 1, "") && nb_progress_report(&silent, 1, 1, ""));
    double before = nb_seconds();
    ck_assert_double_ge(nb_seconds(), before);
    ck_assert_uint_gt(nb_peak_memory(), 100000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("base");
    TCase *plain = tcase_create("plain");
    tcase_set_timeout(plain, 60);
    tcase_add_test(plain, every_status_has_a_name);
    tcase_add_test(plain, messages_gain_context_and_are_cut);
    tcase_add_test(plain, arena_blocks_are_aligned_disjoint_and_reused);
    tcase_add_test(plain, pool_blocks_are_aligned_disjoint_and_reused);
    tcase_add_test(plain, allocation_refuses_overflow_with_a_message);
    tcase_add_test(plain, random_numbers_are_these);
    tcase_add_test(plain, random_moments_are_right);
    tcase_add_test(plain, permutations_hold_every_number_once);
    tcase_add_test(plain, every_half_reads_as_defined_and_returns);
    tcase_add_test(plain, halves_round_to_nearest_even);
    tcase_add_test(plain, halves_equal_the_processors);
    tcase_add_test(plain, bf16_rounds_to_nearest_even);
    tcase_add_test(plain, checksums_match_their_published_values);
    tcase_add_test(plain, crc_continues_and_sees_every_bit);
    tcase_add_test(plain, crc_of_long_data_is_that_of_its_pieces);
    tcase_add_test(plain, memory_of_zeros_is_zero_though_it_was_used);
    tcase_add_loop_test(plain, counts_are_exact, 0, COUNT(counts));
    tcase_add_test(plain, numbers_use_the_whole_text);
    tcase_add_test(plain, progress_stops_the_work);
    suite_add_tcase(suite, plain);
    return run_suite(suite);
}
