/* test_tokenizer_json.c - tokenizer.json, vocab.json and GGUF metadata that lie, or that say what is not read, are refused
 * with the reason; so is every allocation that fails.
 */
#include "scratch.h"
#include "suite.h"
#include "tokenizer_made.h"

/* ---- tokenizer.json ---- */

#define MODEL(vocab, merges) "`model`:{`vocab`:{" vocab "},`merges`:[" merges "]}"
#define BYTES                "`pre_tokenizer`:{`type`:`ByteLevel`,`add_prefix_space`:false}"
#define PRE(stage)                                                                                                     \
    "{`pre_tokenizer`:{`type`:`Sequence`,`pretokenizers`:[{`type`:`ByteLevel`}," stage "]}," MODEL("`a`:0", "") "}"
#define NORMAL(stage)  "{" BYTES ",`normalizer`:" stage "," MODEL("`a`:0", "") "}"
#define REGEX(pattern) PRE("{`type`:`Split`,`behavior`:`Isolated`,`pattern`:{`Regex`:`" pattern "`}}")

static const struct {
    const char *text;
    status wanted;
    const char *words;
} refused[] = {
    {"{", NB_FORMAT, "JSON"},
    {"{`model`:3}", NB_FORMAT, "neither a tokenizer.json"},
    {"{" BYTES "," MODEL("`a`:0,`b`:0", "") "}", NB_FORMAT, "both have id 0"},
    {"{" BYTES "," MODEL("`a`:0,`a`:1", "") "}", NB_FORMAT, "tokens 0 and 1 are both 'a'"},
    {"{" BYTES "," MODEL("`a`:-1", "") "}", NB_FORMAT, "has id -1"},
    {"{" BYTES "," MODEL("`a`:1000000000", "") "}", NB_FORMAT, "has id 1000000000"},
    {"{" BYTES "," MODEL("`a`:0.5", "") "}", NB_FORMAT, "has id -1"},
    {"{" BYTES "," MODEL("`a`:`x`", "") "}", NB_FORMAT, "has id -1"},
    {"{" BYTES "," MODEL("", "") "}", NB_FORMAT, "no tokens"},
    {"{" BYTES "," MODEL("``:0", "") "}", NB_FORMAT, "token 0 is empty"},
    {"{" BYTES "," MODEL("`a`:0,`b`:1", "`a b`") "}", NB_FORMAT, "what they make is not in the vocabulary"},
    {"{" BYTES "," MODEL("`b`:0,`ab`:1", "`a b`") "}", NB_FORMAT, "the first is not in the vocabulary"},
    {"{" BYTES "," MODEL("`a`:0,`ab`:1", "[`a`,`b`]") "}", NB_FORMAT, "the second is not in the vocabulary"},
    {"{" BYTES "," MODEL("`a`:0", "`ab`") "}", NB_FORMAT, "is no pair"},
    {"{" BYTES "," MODEL("`a`:0", "[`a`]") "}", NB_FORMAT, "neither a text nor a pair"},
    {"{" BYTES "," MODEL("`a`:0", "7") "}", NB_FORMAT, "neither a text nor a pair"},
    {"{" BYTES ",`added_tokens`:[{`id`:1}]," MODEL("`a`:0", "") "}", NB_FORMAT, "no content"},
    {"{" BYTES ",`added_tokens`:[{`id`:0,`content`:`b`}]," MODEL("`a`:0", "") "}", NB_FORMAT, "both have id 0"},
    {"{" BYTES ",`model`:{`type`:`Unigram`,`vocab`:{`a`:0}}}", NB_UNSUPPORTED, "type Unigram"},
    {"{" BYTES ",`model`:{`vocab`:{`a`:0},`end_of_word_suffix`:`</w>`}}", NB_UNSUPPORTED, "end_of_word_suffix"},
    {"{" BYTES ",`model`:{`vocab`:{`a`:0},`unk_token`:`u`}}", NB_FORMAT, "'u' is not in the vocabulary"},
    {"{" MODEL("`a`:0", "") "}", NB_UNSUPPORTED, "neither byte-level"},
    {NORMAL("{`type`:`NFKC`}"), NB_UNSUPPORTED, "a normalizer NFKC"},
    {NORMAL("{`type`:`Prepend`,`prepend`:`x`}"), NB_UNSUPPORTED, "a normalizer Prepend"},
    {PRE("{`type`:`Whitespace`}"), NB_UNSUPPORTED, "a pre-tokenizer Whitespace"},
    {PRE("{`type`:`Sequence`,`pretokenizers`:[]}"), NB_UNSUPPORTED, "a Sequence in a Sequence"},
    {PRE("{`type`:`ByteLevel`}"), NB_UNSUPPORTED, "add_prefix_space after another"},
    {PRE("{`type`:`Split`,`behavior`:`Other`,`pattern`:{`Regex`:`a`}}"), NB_UNSUPPORTED, "behavior Other"},
    {PRE("{`type`:`Split`,`behavior`:`Isolated`}"), NB_FORMAT, "without a pattern"},
    {REGEX("(a"), NB_UNSUPPORTED, "pattern '(a'"},
    {REGEX("[a-z&&[^b]]"), NB_UNSUPPORTED, "&&"},
    {REGEX("\\\\C"), NB_UNSUPPORTED, "pattern"},
    {"{`pre_tokenizer`:{`type`:`Metaspace`,`replacement`:`_`}," MODEL("`a`:0", "") "}", NB_UNSUPPORTED, "Metaspace"},
};

START_TEST(a_tokenizer_json_that_lies_is_refused)
{
    static file f;
    fm_tokenizer tk;
    f.n = 0;
    put_json(&f, refused[_i].text);
    const char *path = scratch_write("tokenizer.json", f.byte, f.n);
    status s = fm_tokenizer_open(&tk, path, 0);
    ck_assert_msg(s == refused[_i].wanted && strstr(nb_fail_message(), refused[_i].words) &&
                      strstr(nb_fail_message(), path),
                  "%s: %s", nb_status_name(s), nb_fail_message());
    ck_assert_ptr_null(tk.vocab);
}
END_TEST

START_TEST(a_pattern_without_end_is_stopped)
{
    static file f;
    char text[400];
    f.n = 0;
    put_json(
        &f,
        "{`pre_tokenizer`:{`type`:`Sequence`,`pretokenizers`:[{`type`:`Split`,`behavior`:`Isolated`,`pattern`:{"
        "`Regex`:`(a|aa)+(?!a)(?<!a)`}},{`type`:`ByteLevel`,`add_prefix_space`:false}]}," MODEL("`a`:0", "") "}");
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n));
    fm_ids ids = {0};
    memset(text, 'a', sizeof text);
    ck_assert_int_eq(fm_tokenizer_encode(&tk, &ids, text, sizeof text, 0), NB_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "takes too long"));
    fm_ids_free(&ids);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(ids_without_an_entry_are_unused)
{
    static file f;
    f.n = 0;
    put_json(&f, "{" BYTES ",`added_tokens`:[{`id`:5,`content`:`<x>`}]," MODEL("`a`:0,`b`:3", "") "}");
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n));
    ck_assert_int_eq(tk.vocab_size, 6);
    ck_assert_int_eq(fm_tokenizer_piece(&tk, 4).type, FM_PIECE_UNUSED);
    ck_assert_int_eq(fm_tokenizer_piece(&tk, 5).type, FM_PIECE_USER_DEFINED);
    check_ids(&tk, "ab<x>cba", 8, "0 3 5 3 0"); /* c has no letter and there is no unknown token */
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(merges_txt_is_needed_beside_vocab_json)
{
    static const char vocab[] = "{\"a\":0,\"b\":1,\"ab\":2,\"<|endoftext|>\":3}";
    static const char merges[] = "#version: 0.2\r\na b\r\n\r\n";
    fm_tokenizer tk;
    const char *path = scratch_write("my-vocab.json", vocab, sizeof vocab - 1);
    ck_assert_int_eq(fm_tokenizer_open(&tk, path, 0), NB_IO);
    (void)scratch_write("my-merges.txt", merges, sizeof merges - 1);
    tk = opened(path);
    check_ids(&tk, "abba", 4, "2 1 0");
    ck_assert(tk.bos == 3 && tk.eos == 3 && !tk.add_bos);
    fm_tokenizer_free(&tk);
    (void)scratch_write("my-merges.txt", "a b\na c\n", 8);
    ck_assert_int_eq(fm_tokenizer_open(&tk, path, 0), NB_FORMAT);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "my-merges.txt: merge 1"));
}
END_TEST

/* ---- a folder ---- */

START_TEST(a_folder_is_its_tokenizer)
{
    static file f;
    static const row r = {"null", BYTE_LEVEL(false, true), "", "", "", ""};
    fm_tokenizer tk;
    ck_assert_int_eq(fm_tokenizer_open(&tk, scratch_folder, 0), NB_IO);
    make_byte_level(&f, &r, true);
    (void)scratch_write("tokenizer.json", f.byte, f.n);
    tk = opened(scratch_folder);
    ck_assert_int_eq(tk.kind, FM_TOKENIZER_BPE);
    fm_tokenizer_free(&tk);
    ck_assert_int_eq(fm_tokenizer_open(&tk, scratch_folder, 7), NB_FORMAT);
    (void)scratch_write("tokenizer_config.json", "{", 1);
    ck_assert_int_eq(fm_tokenizer_open(&tk, scratch_folder, 0), NB_FORMAT);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "tokenizer_config.json"));
}
END_TEST

/* ---- GGUF metadata ---- */

#define KEY "tokenizer.ggml."

static fm_meta made_meta(const char *model, int64_t n_types)
{
    static const fm_text tokens[] = {{"a", 1}, {"b", 1}, {"ab", 2}, {"", 0}, {"</s>", 4}};
    static const fm_text merges[] = {{"a b", 3}};
    const int32_t types[] = {1, 1, 1, 5, 1};
    fm_meta m = {0};
    fm_meta_put_string(&m, KEY "model", model);
    fm_meta_put_string(&m, KEY "pre", "gpt-2");
    fm_meta_put_strings(&m, KEY "tokens", tokens, COUNT(tokens));
    fm_meta_put_array(&m, KEY "token_type", FM_I32, types, n_types);
    fm_meta_put_strings(&m, KEY "merges", merges, 1);
    return m;
}

START_TEST(metadata_is_read_as_llama_cpp_does)
{
    fm_meta m = made_meta("gpt2", 5);
    fm_meta_put_u32(&m, KEY "eos_token_id", 4);
    fm_meta_put_u32(&m, KEY "padding_token_id", UINT32_MAX);
    fm_tokenizer tk;
    must(fm_tokenizer_from_meta(&tk, &m));
    ck_assert(tk.eos == 4 && tk.bos == -1 && tk.pad == -1 && !tk.add_bos);
    ck_assert_int_eq(fm_tokenizer_find(&tk, "[EMPTY_3]", 9), 3);
    ck_assert_int_eq(fm_tokenizer_piece(&tk, 4).type, FM_PIECE_CONTROL); /* by its name */
    check_ids(&tk, "abcba", 5, "2 1 0");                                 /* c has no letter: left out */
    fm_tokenizer_free(&tk);
    fm_meta_free(&m);
}
END_TEST

START_TEST(no_tokenizer_is_no_error)
{
    fm_meta m = {0};
    fm_tokenizer tk;
    must(fm_tokenizer_from_meta(&tk, &m));
    ck_assert_int_eq(tk.kind, FM_TOKENIZER_NONE);
    must(fm_tokenizer_put_meta(&m, &tk, 10));
    must(fm_tokenizer_from_meta(&tk, &m));
    ck_assert_int_eq(tk.kind, FM_TOKENIZER_NONE);
    fm_meta_free(&m);
}
END_TEST

static void bad_model(fm_meta *m)
{
    *m = made_meta("bert", 5);
}
static void few_types(fm_meta *m)
{
    *m = made_meta("gpt2", 4);
}
static void no_scores(fm_meta *m)
{
    *m = made_meta("llama", 5);
}
static void model_number(fm_meta *m)
{
    fm_meta_put_u32(m, KEY "model", 1);
}
static void no_tokens(fm_meta *m)
{
    fm_meta_put_string(m, KEY "model", "gpt2");
}
static void bad_eos(fm_meta *m)
{
    *m = made_meta("gpt2", 5);
    fm_meta_put_u32(m, KEY "eos_token_id", 5);
}
static void bad_pre(fm_meta *m)
{
    static const fm_text tokens[] = {{"a", 1}};
    fm_meta_put_string(m, KEY "model", "gpt2");
    fm_meta_put_string(m, KEY "pre", "tekken");
    fm_meta_put_strings(m, KEY "tokens", tokens, 1);
}
static void bad_merge(fm_meta *m)
{
    static const fm_text tokens[] = {{"a", 1}}, merges[] = {{"a", 1}};
    fm_meta_put_string(m, KEY "model", "gpt2");
    fm_meta_put_strings(m, KEY "tokens", tokens, 1);
    fm_meta_put_strings(m, KEY "merges", merges, 1);
}

static const struct {
    void (*make)(fm_meta *m);
    status wanted;
    const char *words;
} bad_metas[] = {
    {bad_model, NB_UNSUPPORTED, "'bert' is not read"},
    {few_types, NB_FORMAT, "token_type 4"},
    {no_scores, NB_FORMAT, "scores 0"},
    {model_number, NB_FORMAT, "model is no text"},
    {no_tokens, NB_FORMAT, "tokens is no list"},
    {bad_eos, NB_FORMAT, "eos_token_id: 5 in a vocabulary of 5"},
    {bad_pre, NB_UNSUPPORTED, "'tekken' is not known"},
    {bad_merge, NB_FORMAT, "'a' is no pair"},
};

START_TEST(metadata_that_lies_is_refused)
{
    fm_meta m = {0};
    fm_tokenizer tk;
    bad_metas[_i].make(&m);
    ck_assert_int_eq(fm_tokenizer_from_meta(&tk, &m), bad_metas[_i].wanted);
    ck_assert_msg(strstr(nb_fail_message(), bad_metas[_i].words), "%s", nb_fail_message());
    ck_assert_ptr_null(tk.vocab);
    fm_meta_free(&m);
}
END_TEST

START_TEST(a_larger_vocabulary_is_padded)
{
    fm_meta m = {0};
    fm_tokenizer tk = opened("bytes"), back;
    must(fm_tokenizer_put_meta(&m, &tk, 300));
    must(fm_tokenizer_from_meta(&back, &m));
    ck_assert(back.vocab_size == 300 && back.byte_fallback && back.bos == 256 && back.eos == 257 && back.add_bos);
    ck_assert_int_eq(fm_tokenizer_find(&back, "[PAD299]", 8), 299);
    check_ids(&back, "a \xC3\xA9\n", 5, "97 32 195 169 10");
    ck_assert_int_eq(fm_tokenizer_put_meta(&m, &back, 299), NB_USAGE);
    fm_meta_free(&m);
    fm_tokenizer_free(&tk);
    fm_tokenizer_free(&back);
}
END_TEST

/* ---- allocations ---- */

static status use_all(const char *path)
{
    static const fm_chat_message hello = {"user", "hello"};
    fm_tokenizer tk, back = {0};
    fm_ids ids = {0};
    fm_meta m = {0};
    uint8_t *data = NULL;
    size_t bytes;
    char *text = NULL;
    status s = fm_tokenizer_open(&tk, path, 0);
    if (s == NB_OK)
        s = fm_tokenizer_encode(&tk, &ids, "the e\xCC\x81 <l>\xE1\xA0\x8E then", 18, FM_PARSE_SPECIAL);
    if (s == NB_OK)
        s = fm_chat_render(&tk, &hello, 1, true, &text);
    if (s == NB_OK)
        s = fm_tokenizer_to_bytes(&tk, &data, &bytes);
    if (s == NB_OK)
        s = fm_tokenizer_from_bytes(&back, data, bytes);
    if (s == NB_OK)
        s = fm_tokenizer_put_meta(&m, &back, back.vocab_size);
    free(data);
    free(text);
    fm_ids_free(&ids);
    fm_meta_free(&m);
    fm_tokenizer_free(&back);
    fm_tokenizer_free(&tk);
    return s;
}

START_TEST(every_failing_allocation_is_reported)
{
    static file f;
    static const row r = {"{`type`:`NFC`}", BYTE_LEVEL(false, true), STRIPS, "", "", ""};
    static const char config[] = "{\"chat_template\":\"<|im_start|><|im_end|>\"}";
    make_byte_level(&f, &r, true);
    const char *path = scratch_write("tokenizer.json", f.byte, f.n);
    (void)scratch_write("tokenizer_config.json", config, sizeof config - 1);
    status s = NB_NOMEM;
    for (int64_t k = 1; s != NB_OK && k < 5000; k++) {
        allocations_left = k;
        s = use_all(path);
        allocations_left = -1;
        ck_assert_msg(s == NB_OK || s == NB_NOMEM, "%s: %s", nb_status_name(s), nb_fail_message());
    }
    ck_assert_int_eq(s, NB_OK);
}
END_TEST

/* Cut anywhere or with a bit turned, the serialized form is refused or read; nothing else happens. */
START_TEST(a_damaged_serialized_form_does_no_harm)
{
    static file f;
    static const row r = {"{`type`:`NFC`}", CUT(QWEN2, "Isolated"), STRIPS, "", "", ""};
    make_byte_level(&f, &r, true);
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n)), back;
    uint8_t *data;
    size_t bytes;
    must(fm_tokenizer_to_bytes(&tk, &data, &bytes));
    for (size_t n = 0; n < bytes; n++)
        ck_assert_int_ne(fm_tokenizer_from_bytes(&back, data, n), NB_OK);
    for (uint64_t i = 0; i < 2000; i++) {
        size_t at = nb_random(3, 0, i) % bytes;
        uint8_t was = data[at];
        data[at] ^= (uint8_t)(1u << (i & 7));
        if (fm_tokenizer_from_bytes(&back, data, bytes) == NB_OK)
            fm_tokenizer_free(&back);
        data[at] = was;
    }
    free(data);
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_json");
    TCase *t = tcase_create("tokenizer_json");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, a_tokenizer_json_that_lies_is_refused, 0, COUNT(refused));
    tcase_add_test(t, a_pattern_without_end_is_stopped);
    tcase_add_test(t, ids_without_an_entry_are_unused);
    tcase_add_test(t, merges_txt_is_needed_beside_vocab_json);
    tcase_add_test(t, a_folder_is_its_tokenizer);
    tcase_add_test(t, metadata_is_read_as_llama_cpp_does);
    tcase_add_test(t, no_tokenizer_is_no_error);
    tcase_add_loop_test(t, metadata_that_lies_is_refused, 0, COUNT(bad_metas));
    tcase_add_test(t, a_larger_vocabulary_is_padded);
    tcase_add_test(t, every_failing_allocation_is_reported);
    tcase_add_test(t, a_damaged_serialized_form_does_no_harm);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
