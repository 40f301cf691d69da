/* test_tokenizer_files.c - the serialized form holds the whole tokenizer; files that lie are refused, with the reason.
 */
#include "scratch.h"
#include "suite.h"
#include "tokenizer_files.h"
#include <math.h>

/* ---- the serialized form ---- */

static const char *const serialized[] = {"bytes", TOK512 ".bin", TOK512 ".model"};

START_TEST(the_serialized_form_is_the_tokenizer)
{
    if (_i > 0 && !have(serialized[_i]))
        return;
    fm_tokenizer a = opened(serialized[_i]), b;
    uint8_t *data, *again;
    size_t bytes, bytes_again;
    must(fm_tokenizer_to_bytes(&a, &data, &bytes));
    must(fm_tokenizer_from_bytes(&b, data, bytes));
    must(fm_tokenizer_to_bytes(&b, &again, &bytes_again));
    ck_assert_uint_eq(bytes, bytes_again);
    ck_assert_mem_eq(data, again, bytes);
    ck_assert(a.kind == b.kind && a.hash == b.hash && a.remove_extra_spaces == b.remove_extra_spaces);
    free(again);
    fm_tokenizer_free(&b);
    must(fm_tokenizer_open(&b, scratch_write("tokenizer", data, bytes), a.vocab_size));
    fm_tokenizer_free(&b);
    for (size_t n = 0; n < bytes; n++)
        ck_assert_int_ne(fm_tokenizer_from_bytes(&b, data, n), NB_OK);
    for (uint64_t i = 0; i < 2000; i++) { /* may be accepted, may not crash */
        size_t at = nb_random(9, 0, i) % bytes;
        uint8_t was = data[at];
        data[at] ^= (uint8_t)(1u << (i & 7));
        if (fm_tokenizer_from_bytes(&b, data, bytes) == NB_OK)
            fm_tokenizer_free(&b);
        data[at] = was;
    }
    free(data);
    fm_tokenizer_free(&a);
}
END_TEST

/* ---- hostile files ---- */

static void bin_nan(file *f)
{
    put_bin_piece(f, "x", NAN);
}
static void bin_infinite(file *f)
{
    put_bin_piece(f, "x", -INFINITY);
}
static void bin_empty(file *f)
{
    put_bin_piece(f, "", 0);
}
static void bin_twice(file *f)
{
    put_bin_piece(f, "x", 0);
    put_bin_piece(f, "x", -1);
}
static void bin_huge(file *f)
{
    put_number(f, 0, 4);
    put_number(f, 0xFFFFFFF0, 4);
    put(f, "x", 1);
}
static void bin_past_the_end(file *f)
{
    put_number(f, 0, 4);
    put_number(f, 2, 4);
    put(f, "x", 1);
}
static void bin_cut(file *f)
{
    put(f, "abc", 3);
}
static void bin_two_bos(file *f)
{
    put_bin_piece(f, "\n<s>\n", 0);
}
static void bin_no_bytes(file *f)
{
    f->n = 4;
    put_bin_piece(f, "x", 0);
}
static void bin_long(file *f)
{
    static char text[5000];
    memset(text, 'x', sizeof text - 1);
    put_bin_piece(f, text, 0);
}
static void model_start(file *f, int model_type)
{
    f->n = 0;
    put_model_piece(f, "<unk>", 0, FM_PIECE_UNKNOWN);
    put_model_piece(f, "a", -1, FM_PIECE_NORMAL);
    uint8_t spec[] = {3 << 3, (uint8_t)model_type};
    put_message(f, 2, spec, sizeof spec);
}
static void model_unigram(file *f)
{
    model_start(f, 1);
}
static void model_no_type(file *f)
{
    f->n = 0;
    put_model_piece(f, "<unk>", 0, FM_PIECE_UNKNOWN);
}
static void model_charsmap(file *f)
{
    model_start(f, 2);
    static const uint8_t spec[] = {2 << 3 | 2, 3, 1, 2, 3};
    put_message(f, 3, spec, sizeof spec);
}
static void model_twice(file *f)
{
    model_start(f, 2);
    put_model_piece(f, "a", -1, FM_PIECE_NORMAL);
}
static void model_two_unknown(file *f)
{
    model_start(f, 2);
    put_model_piece(f, "<u>", 0, FM_PIECE_UNKNOWN);
}
static void model_type_9(file *f)
{
    model_start(f, 2);
    put_model_piece(f, "b", 0, 9);
}
static void model_bad_byte(file *f)
{
    model_start(f, 2);
    put_model_piece(f, "<0xG0>", 0, FM_PIECE_BYTE);
}
static void model_nan(file *f)
{
    model_start(f, 2);
    put_model_piece(f, "b", NAN, FM_PIECE_NORMAL);
}
static void model_long_field(file *f)
{
    model_start(f, 2);
    put(f, "\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11);
}
static void model_long_varint(file *f)
{
    model_start(f, 2);
    put(f, "\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 13);
}
static void model_group(file *f)
{
    model_start(f, 2);
    put(f, "\x0B", 1);
}
static void model_no_bytes(file *f)
{
    model_start(f, 2);
    static const uint8_t spec[] = {0x98, 2, 1}; /* field 35, varint 1 */
    put_message(f, 2, spec, sizeof spec);
}
static void no_file(file *f)
{
    f->n = 0;
}
static void json_file(file *f)
{
    f->n = 0;
    put(f, "{\"model\":{}}", 12);
}
static void text_file(file *f)
{
    f->n = 0;
    put(f, "Once upon a time", 16);
}

static const struct {
    void (*make)(file *f);
    status wanted;
    const char *message;
} hostile[] = {
    {bin_nan, NB_FORMAT, "score nan"},
    {bin_infinite, NB_FORMAT, "score -inf"},
    {bin_empty, NB_FORMAT, "token 259 is empty"},
    {bin_twice, NB_FORMAT, "tokens 259 and 260 are both 'x'"},
    {bin_huge, NB_FORMAT, "token 259 claims 4294967280 bytes"},
    {bin_past_the_end, NB_FORMAT, "claims 2 bytes"},
    {bin_cut, NB_FORMAT, "ends inside token 259"},
    {bin_two_bos, NB_FORMAT, "are both '<s>'"},
    {bin_no_bytes, NB_FORMAT, "neither an unknown token"},
    {bin_long, NB_FORMAT, "4096 allowed"},
    {model_unigram, NB_UNSUPPORTED, "UNIGRAM"},
    {model_no_type, NB_UNSUPPORTED, "UNIGRAM"},
    {model_charsmap, NB_UNSUPPORTED, "normalization_rule_name=identity"},
    {model_twice, NB_FORMAT, "tokens 1 and 2 are both 'a'"},
    {model_two_unknown, NB_FORMAT, "both the unknown token"},
    {model_type_9, NB_FORMAT, "type 9"},
    {model_bad_byte, NB_FORMAT, "<0xG0>"},
    {model_nan, NB_FORMAT, "score nan"},
    {model_long_field, NB_FORMAT, "damaged or cut off"},
    {model_long_varint, NB_FORMAT, "damaged or cut off"},
    {model_group, NB_FORMAT, "wire type 3"},
    {model_no_bytes, NB_FORMAT, "not every byte has a token"},
    {no_file, NB_FORMAT, "neither a tokenizer.bin"},
    {json_file, NB_FORMAT, "neither a tokenizer.json"},
    {text_file, NB_FORMAT, "neither a tokenizer.bin"},
};

START_TEST(a_file_that_lies_is_refused)
{
    static file f;
    begin_bin(&f);
    hostile[_i].make(&f);
    const char *path = scratch_write("hostile", f.byte, f.n);
    fm_tokenizer tk;
    ck_assert_int_eq(fm_tokenizer_open(&tk, path, 0), hostile[_i].wanted);
    ck_assert_msg(strstr(nb_fail_message(), hostile[_i].message) && strstr(nb_fail_message(), path), "%s",
                  nb_fail_message());
    ck_assert_ptr_null(tk.vocab);
}
END_TEST

START_TEST(a_cut_file_is_refused)
{
    const char *path = _i ? TOK512 ".model" : TOK512 ".bin";
    if (!have(path))
        return;
    nb_mapped m;
    must(nb_map(&m, path));
    int accepted = 0;
    for (size_t n = 0; n < m.bytes; n += n < 64 || n + 400 > m.bytes ? 1 : 37) {
        fm_tokenizer tk;
        accepted += fm_tokenizer_open(&tk, scratch_write("cut", m.data, n), 512) == NB_OK;
        fm_tokenizer_free(&tk);
    }
    ck_assert_int_eq(accepted, _i); /* a .model may lack its last message, whose fields have defaults */
    nb_unmap(&m);
}
END_TEST

START_TEST(every_failing_allocation_is_reported)
{
    static file f;
    begin_bin(&f);
    put_bin_piece(&f, " a", -1);
    const char *path = scratch_write("small.bin", f.byte, f.n);
    status s = NB_NOMEM;
    for (int64_t k = 1; s != NB_OK && k < 1000; k++) {
        fm_tokenizer tk;
        fm_ids ids = {0};
        allocations_left = k;
        s = fm_tokenizer_open(&tk, path, 0);
        if (s == NB_OK)
            s = fm_tokenizer_encode(&tk, &ids, "a b a", 5, FM_ADD_BOS);
        allocations_left = -1;
        ck_assert(s == NB_OK || s == NB_NOMEM);
        fm_ids_free(&ids);
        fm_tokenizer_free(&tk);
    }
    ck_assert_int_eq(s, NB_OK);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_files");
    TCase *t = tcase_create("tokenizer_files");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, the_serialized_form_is_the_tokenizer, 0, COUNT(serialized));
    tcase_add_loop_test(t, a_file_that_lies_is_refused, 0, COUNT(hostile));
    tcase_add_loop_test(t, a_cut_file_is_refused, 0, 2);
    tcase_add_test(t, every_failing_allocation_is_reported);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
