/* test_base.c - what src/base promises: messages, memory, random numbers, small floats, checksums, files, JSON, numbers
 * in text. The reference of binary16 is the processor's own F16C where it has it.
 */
#include "base/base.h"
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* ---- files ---- */

static char folder[512]; /* of this test, made new */

static void make_scratch(void)
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/nibble-base-XXXXXX", parent && *parent ? parent : P_tmpdir);
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_scratch(void)
{
    char command[1100];
    snprintf(command, sizeof command, "chmod -R u+w '%s' && rm -rf '%s'", folder, folder);
    ck_assert_int_eq(system(command), 0);
}

static char *in_scratch(const char *name)
{
    char *path = nb_path_join(folder, name);
    ck_assert_ptr_nonnull(path);
    return path;
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(text, f), 0);
    ck_assert_int_eq(fclose(f), 0);
}

static void assert_text(const char *path, const char *want)
{
    nb_mapped m;
    ck_assert_int_eq(nb_map(&m, path), NB_OK);
    ck_assert_uint_eq(m.bytes, strlen(want));
    ck_assert_int_eq(memcmp(m.data, want, m.bytes), 0);
    nb_unmap(&m);
    nb_unmap(&m);
}

static int files_in_scratch(void)
{
    char command[600];
    snprintf(command, sizeof command, "ls -A '%s'", folder);
    FILE *f = popen(command, "r");
    int n = 0;
    for (int c; (c = fgetc(f)) != EOF;)
        n += c == '\n';
    pclose(f);
    return n;
}

START_TEST(mapping_refuses_what_is_no_file)
{
    nb_mapped m;
    char *empty = in_scratch("empty"), *pipe_path = in_scratch("pipe"), *absent = in_scratch("absent");
    write_text(empty, "");
    ck_assert_int_eq(nb_map(&m, empty), NB_OK);
    ck_assert_ptr_nonnull(m.data);
    ck_assert_uint_eq(m.bytes, 0);
    nb_unmap(&m);
    ck_assert_int_eq(mkfifo(pipe_path, 0600), 0);
    const char *bad[] = {folder, pipe_path, absent, "/dev/null", ""};
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(nb_map(&m, bad[i]), NB_IO);
        ck_assert_ptr_nonnull(strstr(nb_fail_message(), bad[i]));
        ck_assert_ptr_null(m.data);
    }
    free(empty);
    free(pipe_path);
    free(absent);
}
END_TEST

START_TEST(replacement_is_all_or_nothing)
{
    char *target = in_scratch("model.h5"), *link_path = in_scratch("link");
    nb_atomic a, other;
    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK);
    ck_assert_int_ge(fputs("one", a.file), 0);
    ck_assert(!nb_path_exists(target));
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    nb_atomic_abort(&a);
    assert_text(target, "one");

    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK); /* two at once; the one given up leaves no trace */
    ck_assert_int_eq(nb_atomic_begin(&other, target), NB_OK);
    ck_assert_str_ne(a.path, other.path);
    fputs("lost", other.file);
    nb_atomic_abort(&other);
    assert_text(target, "one");
    fclose(a.file); /* a writer of its own, by the path */
    a.file = NULL;
    write_text(a.path, "two");
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    assert_text(target, "two");
    ck_assert_int_eq(nb_atomic_commit(&a), NB_USAGE);

    ck_assert_int_eq(chmod(target, 0640), 0); /* a link stays one, a mode stays what it was */
    ck_assert_int_eq(symlink("model.h5", link_path), 0);
    ck_assert_int_eq(nb_atomic_begin(&a, link_path), NB_OK);
    fputs("three", a.file);
    ck_assert_int_eq(nb_atomic_commit(&a), NB_OK);
    assert_text(target, "three");
    struct stat st;
    ck_assert_int_eq(lstat(link_path, &st), 0);
    ck_assert(S_ISLNK(st.st_mode));
    ck_assert_int_eq(stat(target, &st), 0);
    ck_assert_int_eq((int)(st.st_mode & 0777), 0640);
    ck_assert_int_eq(files_in_scratch(), 2);
    free(target);
    free(link_path);
}
END_TEST

START_TEST(replacement_that_fails_says_so)
{
    nb_atomic a;
    char *target = in_scratch("a"), *nowhere = in_scratch("no/such/folder");
    write_text(target, "old");
    const char *bad[] = {nowhere, folder, "/dev/null"};
    for (int i = 0; i < COUNT(bad); i++) {
        ck_assert_int_eq(nb_atomic_begin(&a, bad[i]), NB_IO);
        ck_assert_ptr_nonnull(strstr(nb_fail_message(), bad[i]));
        nb_atomic_abort(&a);
    }
    ck_assert_int_eq(nb_atomic_begin(&a, target), NB_OK);
    a.file = freopen("/dev/full", "wb", a.file); /* a full disk */
    ck_assert_ptr_nonnull(a.file);
    fputs("new", a.file);
    ck_assert_int_eq(nb_atomic_commit(&a), NB_IO);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "No space left"));
    assert_text(target, "old");
    ck_assert_int_eq(files_in_scratch(), 1);
    free(target);
    free(nowhere);
}
END_TEST

START_TEST(folders_are_made_with_parents)
{
    char *deep = in_scratch("a//b/c/"), *file = in_scratch("file"), *under_file = in_scratch("file/x");
    for (int twice = 0; twice < 2; twice++) {
        ck_assert_int_eq(nb_make_folder(deep), NB_OK);
        ck_assert(nb_path_is_folder(deep));
    }
    write_text(file, "x");
    ck_assert(nb_path_exists(file) && !nb_path_is_folder(file));
    ck_assert_int_eq(nb_make_folder(file), NB_IO);
    ck_assert_int_eq(nb_make_folder(under_file), NB_IO);
    free(deep);
    free(file);
    free(under_file);
}
END_TEST

START_TEST(paths_join_and_split)
{
    static const char *const rows[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}, {"a/b", "c.h5", "a/b/c.h5"}};
    for (int r = 0; r < COUNT(rows); r++) {
        char *path = nb_path_join(rows[r][0], rows[r][1]);
        ck_assert_str_eq(path, rows[r][2]);
        ck_assert_str_eq(nb_path_name(path), rows[r][1]);
        free(path);
    }
}
END_TEST

/* ---- JSON ---- */

static nb_json *parse_exactly(const char *text) /* from a block that ends where the text ends */
{
    size_t bytes = strlen(text);
    char *copy = nb_alloc(bytes, 1);
    memcpy(copy, text, bytes);
    nb_json *j = nb_json_parse(copy, bytes);
    free(copy);
    return j;
}

START_TEST(json_reads_every_kind)
{
    nb_json *j = parse_exactly("{\"dim\": 64, \"eps\":1e-5,\"Dim\":7, \"tied\":true, \"none\":null, "
                               "\"name\":\"\\u00e9\\n\", \"layers\":[1,2.5,-3], \"sub\":{\"x\":[]}}");
    ck_assert_ptr_nonnull(j);
    ck_assert_int_eq(nb_json_int(nb_json_get(j, "dim"), -1), 64);
    ck_assert_double_eq(nb_json_number(nb_json_get(j, "eps"), 0), 1e-5);
    ck_assert(nb_json_bool(nb_json_get(j, "tied"), false));
    ck_assert(nb_json_is_null(nb_json_get(j, "none")) && nb_json_is_null(nb_json_get(j, "absent")));
    ck_assert(!nb_json_is_null(nb_json_get(j, "dim")));
    ck_assert_str_eq(nb_json_string(nb_json_get(j, "name")), "\xC3\xA9\n");
    const nb_json *layers = nb_json_get(j, "layers");
    ck_assert_int_eq(nb_json_count(layers), 3);
    ck_assert_int_eq(nb_json_int(nb_json_at(layers, 2), 0), -3);
    ck_assert_int_eq(nb_json_int(nb_json_at(layers, 1), 99), 99); /* 2.5 is no integer */
    ck_assert_ptr_null(nb_json_at(layers, 3));
    ck_assert_ptr_null(nb_json_at(layers, -1));
    ck_assert_ptr_null(nb_json_get(layers, "x"));
    ck_assert_int_eq(nb_json_count(nb_json_get(nb_json_get(j, "sub"), "x")), 0);
    static const char *const keys[] = {"dim", "eps", "Dim", "tied", "none", "name", "layers", "sub"};
    int n = 0;
    for (const nb_json *i = nb_json_first(j); i; i = nb_json_next(i))
        ck_assert_str_eq(nb_json_key(i), keys[n++]);
    ck_assert_int_eq(n, COUNT(keys));
    ck_assert_int_eq(nb_json_int(NULL, 5), 5);
    ck_assert_ptr_null(nb_json_string(nb_json_get(j, "dim")));
    ck_assert(!nb_json_bool(nb_json_get(j, "dim"), false));
    nb_json_free(j);
    nb_json_free(NULL);
}
END_TEST

static const char *const bad_json[] = {
    "",    " ",     "{",        "}",         "[1,]",    "{\"a\":}", "{\"a\" 1}",   "{a:1}",        "[1 2]", "nul",
    "tru", "\"abc", "\"abc\\",  "\"\\u12",   "[1]x",    "{} {}",    "\"\\ud800\"", "\xEF\xBB\xBF", "-",     "[",
    "[[]", "{\"",   "{\"a\\\"", "{\"a\":1,", "\"\\x\"", "[\"a",     "[1e",         "'a'",          "/",     "\\",
};

START_TEST(json_refuses_what_is_none)
{
    nb_json *j = parse_exactly(bad_json[_i]);
    ck_assert_msg(!j, "accepted: %s", bad_json[_i]);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "JSON"));
}
END_TEST

START_TEST(json_limits_depth_numbers_and_nuls)
{
    enum { DEEP = 100000 };
    char *text = nb_alloc(2 * DEEP, 1);
    for (int depth = 63; depth <= DEEP; depth = depth < 66 ? depth + 1 : depth * 30) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        nb_json *j = nb_json_parse(text, 2 * (size_t)depth);
        ck_assert_int_eq(j != NULL, depth <= 64);
        nb_json_free(j);
    }
    free(text);
    char brackets[201]; /* brackets in a string have no depth */
    memset(brackets, '[', 200);
    brackets[0] = brackets[199] = '"';
    nb_json *j = nb_json_parse(brackets, 200);
    ck_assert_ptr_nonnull(j);
    nb_json_free(j);
    ck_assert_ptr_null(nb_json_parse("\"a\0b\"", 5));
    ck_assert_ptr_null(nb_json_parse("1\0", 2));
    j = parse_exactly("[1e999, 9007199254740992, 9007199254740994, -1e300]");
    ck_assert(!nb_json_is_number(nb_json_at(j, 0)));
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 1), -1), 9007199254740992);
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 2), -1), -1);
    ck_assert_int_eq(nb_json_int(nb_json_at(j, 3), -1), -1);
    nb_json_free(j);
}
END_TEST

START_TEST(json_text_is_what_was_put)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_int(&w, "step", INT64_MIN);
    nb_json_put_number(&w, "kl", 0.1);
    nb_json_put_number(&w, "nan", NAN);
    nb_json_open(&w, "ci", '[');
    nb_json_put_number(&w, NULL, 1);
    nb_json_put_string(&w, NULL, "a\"\\\n\x01\x7F\xC3\xA9\xE2\x82");
    nb_json_open(&w, NULL, '{');
    nb_json_close(&w, '}');
    nb_json_close(&w, ']');
    nb_json_put_bool(&w, "best", true);
    nb_json_put_raw(&w, "raw", "[]");
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    ck_assert_str_eq(text, "{\"step\":-9223372036854775808,\"kl\":0.1,\"nan\":null,\"ci\":[1,"
                           "\"a\\\"\\\\\\n\\u0001\\u007f\xC3\xA9\xEF\xBF\xBD\xEF\xBF\xBD\",{}],"
                           "\"best\":true,\"raw\":[]}");
    nb_json *j = parse_exactly(text);
    ck_assert_ptr_nonnull(j);
    nb_json_free(j);
    free(text);
    ck_assert_ptr_null(w.text);
    text = nb_json_text(&w);
    ck_assert_str_eq(text, "");
    free(text);
}
END_TEST

START_TEST(json_numbers_read_back_the_same)
{
    for (uint64_t i = 0; i < 5000; i++) {
        uint64_t u = nb_random(3, 0, i);
        double x;
        memcpy(&x, &u, sizeof x);
        if (i % 2)
            x = float_of((uint32_t)u);
        if (!isfinite(x))
            continue;
        nb_writer w = {0};
        nb_json_put_number(&w, NULL, x);
        char *text = nb_json_text(&w);
        nb_json *j = parse_exactly(text);
        double y = nb_json_number(j, NAN);
        ck_assert_int_eq(memcmp(&x, &y, sizeof x), 0);
        nb_json_free(j);
        free(text);
    }
}
END_TEST

static const struct {
    const char *bytes;
    const char *want;
} utf8[] = {
    {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
    {"\xED\xA0\x80", "???"}, /* a surrogate */
    {"\xC0\x80", "??"},      /* overlong */
    {"\xE0\x80\x80", "???"},
    {"\xF4\x90\x80\x80", "????"}, /* beyond U+10FFFF */
    {"\xF0\x9F\x98", "???"},
    {"\x80", "?"},
    {"\xFF\xFE", "??"},
    {"\xF0\x9F\x98\xC3\xA9", "???\xC3\xA9"},
};

START_TEST(json_strings_are_valid_utf8)
{
    char want[64] = "\"";
    for (const char *c = utf8[_i].want; *c; c++) {
        char one[2] = {*c, 0};
        strcat(want, *c == '?' ? "\xEF\xBF\xBD" : one);
    }
    strcat(want, "\"");
    nb_writer w = {0};
    nb_json_put_string(&w, NULL, utf8[_i].bytes);
    char *text = nb_json_text(&w);
    ck_assert_str_eq(text, want);
    free(text);
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
    TCase *plain = tcase_create("plain"), *files = tcase_create("files");
    tcase_set_timeout(plain, 60);
    tcase_add_test(plain, every_status_has_a_name);
    tcase_add_test(plain, messages_gain_context_and_are_cut);
    tcase_add_test(plain, arena_blocks_are_aligned_disjoint_and_reused);
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
    tcase_add_test(plain, paths_join_and_split);
    tcase_add_test(plain, json_reads_every_kind);
    tcase_add_loop_test(plain, json_refuses_what_is_none, 0, COUNT(bad_json));
    tcase_add_test(plain, json_limits_depth_numbers_and_nuls);
    tcase_add_test(plain, json_text_is_what_was_put);
    tcase_add_test(plain, json_numbers_read_back_the_same);
    tcase_add_loop_test(plain, json_strings_are_valid_utf8, 0, COUNT(utf8));
    tcase_add_loop_test(plain, counts_are_exact, 0, COUNT(counts));
    tcase_add_test(plain, numbers_use_the_whole_text);
    tcase_add_test(plain, progress_stops_the_work);
    tcase_add_checked_fixture(files, make_scratch, remove_scratch);
    tcase_add_test(files, mapping_refuses_what_is_no_file);
    tcase_add_test(files, replacement_is_all_or_nothing);
    tcase_add_test(files, replacement_that_fails_says_so);
    tcase_add_test(files, folders_are_made_with_parents);
    suite_add_tcase(suite, plain);
    suite_add_tcase(suite, files);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
