/* test_tokenizer_bpe.c - BPE from tokenizer.json, vocab.json and GGUF: ids equal those of Hugging Face tokenizers 0.23.3
 * and of a plain merge; the forms of one tokenizer are one; texts come back.
 */
#include "random_texts.h"
#include "scratch.h"
#include "suite.h"
#include "tokenizer_made.h"

#define GPT2_VOCAB DATA "tokenizers/gpt2_vocab.json"
#define GPT2_GGUF  VOCAB "gpt-2.gguf"

/* Special tokens are looked for, as tokenizers does always. */
static void check_special_ids(const fm_tokenizer *tk, const char *text, const char *wanted)
{
    fm_ids ids = {0};
    char found[512] = "";
    must(fm_tokenizer_encode(tk, &ids, text, strlen(text), FM_PARSE_SPECIAL));
    for (int64_t i = 0; i < ids.n; i++)
        (void)snprintf(found + strlen(found), sizeof found - strlen(found), "%s%d", i ? " " : "", (int)ids.id[i]);
    ck_assert_str_eq(found, wanted);
    fm_ids_free(&ids);
}

static const row byte_rows[] = {
    {"null", BYTE_LEVEL(false, true), "", "", "the  the\012\012 in 123 it's\011the",
     "257 32 258 264 32 260 32 263 32 105 116 267 9 257"},
    {"null", BYTE_LEVEL(true, true), "", "", "the  the\012\012 in 123 it's\011the",
     "258 32 258 264 32 260 32 263 32 105 116 267 9 257"},
    {"null", SEQUENCE(DIGITS(true), BYTE_LEVEL(false, true)), "", "", "the  the\012\012 in 123 it's\011the",
     "257 32 258 264 32 260 32 49 50 51 32 105 116 267 9 257"},
    {"null", SEQUENCE(DIGITS(false), BYTE_LEVEL(false, false)), "", "", "a12 123b", "97 262 32 263 98"},
    {"{`type`:`NFC`}", CUT(QWEN2, "Isolated"), "", "", "e\314\201 \303\251 it'S 123\015\012\012  x",
     "271 32 271 32 105 116 268 32 49 50 51 13 264 32 32 120"},
    {"null", CUT(QWEN2, "Isolated"), "", "", "e\314\201 \303\251 it'S 123\015\012\012  x",
     "101 204 129 32 271 32 105 116 268 32 49 50 51 13 264 32 32 120"},
    {"null", CUT("ab", "Isolated"), "", "", "abcabab cab", "269 99 269 269 32 99 269"},
    {"null", CUT("ab", "Removed"), "", "", "abcabab cab", "99 32 99"},
    {"null", CUT("[ab]", "Isolated"), "", "", "abcabab cab", "97 98 99 97 98 97 98 32 99 97 98"},
    {"null", CUT("[ab]", "Contiguous"), "", "", "abcabab cab", "269 99 269 269 32 99 269"},
    {"null", CUT("c", "MergedWithPrevious"), "", "", "cabcc c  cab", "99 270 99 32 99 265 99 269"},
    {"null", CUT("c", "MergedWithNext"), "", "", "cabcc c  cab", "99 269 99 274 99 265 99 269"},
    {"null", SEQUENCE(SPLIT("Regex", "[a-z]+", "Removed", true), BYTE_LEVEL(false, false)), "", "", "abc the 12",
     "270 257"},
    {"null", SEQUENCE(SPLIT("String", "..", "Isolated", false), BYTE_LEVEL(false, false)), "", "", "a..b...the",
     "97 275 98 275 46 257"},
    {"null", BYTE_LEVEL(false, true),
     "{`id`:276,`content`:`<|im_start|>`,`special`:true},{`id`:277,`content`:`<x>`},{`id`:278,`content`:`<x>y`}", "",
     "<x>y<x>z the<x>y", "278 277 122 258 278"},
    {"null", BYTE_LEVEL(false, true), STRIPS, "", "then  <l> <r> \012 the thenthen a<r>in then",
     "278 276 32 277 257 258 110 257 110 32 97 277 260 32 278"},
    {"{`type`:`NFC`}", BYTE_LEVEL(false, true), STRIPS, "", "ne\314\201 n\303\251x e\314\201", "279 32 279 120 32 271"},
    {"null", BYTE_LEVEL(false, true), "", "`ignore_merges`:true", "abc the", "270 258"},
};

static const row character_rows[] = {
    {LLAMA2, "null", "", "", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 270 272 268 63 118 65 272 259 198 172 259 265 198 172 198 172 259 268"},
    {REPLACE, SPLIT("String", " ", "MergedWithPrevious", false), "", "",
     "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "267 270 272 268 63 118 65 272 259 198 172 259 265 198 172 198 172 259 268"},
    {"null", METASPACE("always", true), "", "", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 259 259 259 271 261 268 63 118 65 272 259 198 172 259 265 198 172 198 172 259 268"},
    {"null", METASPACE("always", false), BOS, "", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 270 272 268 1 271 261 259 198 172 259 265 198 172 198 172 259 268"},
    {"null", METASPACE("first", true), BOS, "", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 259 259 259 271 261 268 1 272 259 198 172 259 265 198 172 198 172 259 268"},
    {"null", METASPACE("first", false), BOS, "", " the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 270 272 268 1 272 259 198 172 259 265 198 172 198 172 259 268"},
    {"null", METASPACE("never", true), "", "", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "267 259 259 259 271 261 268 63 118 65 272 259 198 172 259 265 198 172 198 172 259 268"},
    {LLAMA2, "null", "", "`byte_fallback`:false", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 270 272 268 0 272 259 0 259 265 0 259 268"},
    {LLAMA2, "null", "", "`byte_fallback`:false,`fuse_unk`:false", "the    ab the<s>ab \303\251 x\303\251\303\251  the",
     "268 270 272 268 0 0 0 272 259 0 259 265 0 0 259 268"},
};

START_TEST(ids_are_those_of_tokenizers)
{
    static file f;
    bool is_byte_level = _i < COUNT(byte_rows);
    const row *r = is_byte_level ? &byte_rows[_i] : &character_rows[_i - COUNT(byte_rows)];
    if (is_byte_level)
        make_byte_level(&f, r, _i % 2);
    else
        make_characters(&f, r);
    fm_tokenizer a = opened(scratch_write("tokenizer.json", f.byte, f.n)), b;
    uint8_t *data;
    size_t bytes;
    must(fm_tokenizer_to_bytes(&a, &data, &bytes));
    must(fm_tokenizer_from_bytes(&b, data, bytes));
    ck_assert_uint_eq(a.hash, b.hash);
    check_special_ids(&a, r->text, r->ids);
    check_special_ids(&b, r->text, r->ids);
    free(data);
    fm_tokenizer_free(&b);
    b = through_folder(&a);
    ck_assert_uint_eq(a.hash, b.hash);
    check_special_ids(&b, r->text, r->ids);
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
}
END_TEST

/* The same tokenizer by way of its serialized form, of GGUF metadata, and of a Hugging Face folder. */
static void check_forms(const fm_tokenizer *tk, void (*check)(const fm_tokenizer *tk))
{
    uint8_t *data, *again;
    size_t bytes, bytes_again;
    fm_tokenizer other;
    fm_meta meta = {0};
    must(fm_tokenizer_to_bytes(tk, &data, &bytes));
    must(fm_tokenizer_from_bytes(&other, data, bytes));
    must(fm_tokenizer_to_bytes(&other, &again, &bytes_again));
    ck_assert(bytes == bytes_again && memcmp(data, again, bytes) == 0);
    ck_assert_uint_eq(other.hash, tk->hash);
    check(&other);
    fm_tokenizer_free(&other);
    must(fm_tokenizer_put_meta(&meta, tk, tk->vocab_size));
    must(fm_tokenizer_from_meta(&other, &meta));
    ck_assert_uint_eq(other.hash, tk->hash);
    ck_assert(other.add_bos == tk->add_bos && other.add_space_prefix == tk->add_space_prefix);
    check(&other);
    fm_tokenizer_free(&other);
    other = through_folder(tk);
    ck_assert_uint_eq(other.hash, tk->hash);
    ck_assert(other.add_bos == tk->add_bos && other.add_space_prefix == tk->add_space_prefix);
    ck_assert(other.remove_extra_spaces == tk->remove_extra_spaces && other.bos == tk->bos && other.eos == tk->eos);
    check(&other);
    fm_tokenizer_free(&other);
    fm_meta_free(&meta);
    free(data);
    free(again);
}

static void check_gpt2(const fm_tokenizer *tk)
{
    check_vectors(tk, GPT2_GGUF);
}

static void check_spm(const fm_tokenizer *tk)
{
    check_vectors(tk, VOCAB "llama-spm.gguf");
}

START_TEST(the_47_vectors_of_llama_cpp_pass_in_every_form)
{
    const char *path = _i ? VOCAB "llama-spm.gguf" : GPT2_GGUF;
    if (!have(path))
        return;
    fm_tokenizer tk = opened(path);
    ck_assert_int_eq(tk.kind, _i ? FM_TOKENIZER_SPM : FM_TOKENIZER_BPE);
    (_i ? check_spm : check_gpt2)(&tk);
    check_forms(&tk, _i ? check_spm : check_gpt2);
    fm_tokenizer_free(&tk);
}
END_TEST

/* The built-in bytes have ranks without merges in a folder, and the same ids. */
START_TEST(bytes_in_a_folder_are_bytes)
{
    fm_tokenizer a, b;
    fm_ids x = {0}, y = {0};
    char text[256];
    for (int i = 0; i < 256; i++)
        text[i] = (char)(255 - i);
    must(fm_tokenizer_byte(&a));
    b = through_folder(&a);
    ck_assert(b.kind == FM_TOKENIZER_BPE && b.vocab_size == a.vocab_size && b.bos == a.bos && b.eos == a.eos);
    must(fm_tokenizer_encode(&a, &x, text, sizeof text, FM_ADD_BOS | FM_ADD_EOS));
    must(fm_tokenizer_encode(&b, &y, text, sizeof text, FM_ADD_BOS | FM_ADD_EOS));
    ck_assert(x.n == y.n && memcmp(x.id, y.id, (size_t)x.n * sizeof *x.id) == 0);
    fm_ids_free(&x);
    fm_ids_free(&y);
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
}
END_TEST

START_TEST(vocab_json_with_merges_is_the_tokenizer_in_gguf)
{
    if (!have(GPT2_VOCAB) || !have(GPT2_GGUF))
        return;
    fm_tokenizer a = opened(GPT2_VOCAB), b = opened(GPT2_GGUF);
    ck_assert_uint_eq(a.hash, b.hash);
    ck_assert(a.bos == 50256 && a.eos == 50256 && !a.add_bos && !b.add_bos && a.byte_fallback);
    check_gpt2(&a);
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
}
END_TEST

START_TEST(sentencepiece_in_gguf_is_the_tokenizer_model)
{
    if (!have(LLAMA ".model") || !have(VOCAB "llama-spm.gguf"))
        return;
    fm_tokenizer a = opened(LLAMA ".model"), b = opened(VOCAB "llama-spm.gguf");
    ck_assert_int_eq(a.vocab_size, b.vocab_size);
    for (int32_t id = 0; id < a.vocab_size; id++) {
        fm_piece p = fm_tokenizer_piece(&a, id), q = fm_tokenizer_piece(&b, id);
        ck_assert(p.text.bytes == q.text.bytes && memcmp(p.text.text, q.text.text, p.text.bytes) == 0);
        ck_assert(p.type == q.type && p.score == q.score);
    }
    ck_assert_uint_eq(a.hash, b.hash);
    ck_assert(b.add_bos && b.add_space_prefix && b.bos == 1 && b.eos == 2 && b.unknown == 0);
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
}
END_TEST

/* ---- a plain merge ---- */

enum { MOST_SYMBOLS = RANDOM_TEXT_BYTES, N_RANDOM = 40 };

/* Random merges of the letters a to d and of what they make: pairs[i] makes ids 256 + i. */
static void make_random_merges(file *f, uint64_t seed, int pairs[N_RANDOM][2])
{
    static char text[256 + N_RANDOM][64];
    static file merges;
    int id = 0, n = 0;
    f->n = merges.n = 0;
    put_json(f, "{`pre_tokenizer`:{`type`:`ByteLevel`,`add_prefix_space`:false,`use_regex`:false},`model`:{`vocab`:{");
    for (int i = 0; i < 256; i++) {
        size_t bytes = letter(text[i], i);
        text[i][bytes] = 0;
        put_entry(f, text[i], bytes, &id);
    }
    for (uint64_t i = 0; n < N_RANDOM && i < 1000; i++) {
        int side[2];
        for (uint64_t k = 0; k < 2; k++) {
            uint64_t x = nb_random(seed, 1 + k, i) % (uint64_t)(4 + n);
            side[k] = x < 4 ? 'a' + (int)x : 256 + (int)(x - 4);
        }
        char made[128], line[160];
        (void)snprintf(made, sizeof made, "%s%s", text[side[0]], text[side[1]]);
        bool is_new = strlen(made) < 16;
        for (int k = 0; k < n; k++)
            is_new = is_new && strcmp(text[256 + k], made) != 0;
        if (!is_new)
            continue;
        memcpy(text[256 + n], made, strlen(made) + 1);
        memcpy(pairs[n++], side, sizeof side);
        put_entry(f, made, strlen(made), &id);
        (void)snprintf(line, sizeof line, "%s`%s %s`", n > 1 ? "," : "", text[side[0]], text[side[1]]);
        put_json(&merges, line);
    }
    ck_assert_int_eq(n, N_RANDOM);
    put_json(f, "},`merges`:[");
    put(f, merges.byte, merges.n);
    put_json(f, "]}}");
}

/* By the definition: the pair of lowest rank, leftmost, again and again. */
static int merge_plainly(int *id, int n, int pairs[N_RANDOM][2])
{
    for (;;) {
        int rank = N_RANDOM, at = -1;
        for (int i = 0; i + 1 < n; i++)
            for (int k = 0; k < rank; k++)
                if (pairs[k][0] == id[i] && pairs[k][1] == id[i + 1]) {
                    rank = k;
                    at = i;
                }
        if (at < 0)
            return n;
        id[at] = 256 + rank;
        memmove(id + at + 1, id + at + 2, (size_t)(--n - at - 1) * sizeof *id);
    }
}

START_TEST(ids_equal_a_plain_merge)
{
    static file f;
    int pairs[N_RANDOM][2];
    make_random_merges(&f, (uint64_t)_i, pairs);
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n));
    for (uint64_t seed = 0; seed < 200; seed++) {
        char text[100];
        int wanted[100], n = (int)(nb_random(seed, 9, 0) % 100);
        for (int i = 0; i < n; i++)
            wanted[i] = text[i] = (char)('a' + (int)(nb_random(seed, 10, (uint64_t)i) % 5));
        fm_ids ids = encoded(&tk, text, (size_t)n);
        n = merge_plainly(wanted, n, pairs);
        ck_assert_int_eq(ids.n, n);
        for (int i = 0; i < n; i++)
            ck_assert_int_eq(ids.id[i], wanted[i]);
        fm_ids_free(&ids);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

/* ---- there and back ---- */

START_TEST(decoding_gives_the_text_back)
{
    if (!have(GPT2_GGUF))
        return;
    fm_tokenizer tk = opened(GPT2_GGUF);
    static fm_stream stream;
    for (uint64_t seed = 0; seed < 300; seed++) {
        char text[RANDOM_TEXT_BYTES], back[RANDOM_TEXT_BYTES], streamed[RANDOM_TEXT_BYTES + 8];
        size_t bytes = random_utf8(text, seed, NULL), n = 0, n_streamed = 0;
        fm_ids ids = encoded(&tk, text, bytes);
        for (int64_t i = 0; i <= ids.n; i++) {
            fm_text s = i < ids.n ? fm_stream_put(&stream, &tk, ids.id[i]) : fm_stream_flush(&stream);
            fm_text t = i < ids.n ? fm_tokenizer_decode(&tk, -1, ids.id[i]) : (fm_text){"", 0};
            memcpy(back + n, t.text, t.bytes);
            memcpy(streamed + n_streamed, s.text, s.bytes);
            n += t.bytes;
            n_streamed += s.bytes;
            ck_assert(s.bytes == 0 || (s.text[0] & 0xC0) != 0x80); /* whole characters */
        }
        ck_assert(n == bytes && memcmp(back, text, n) == 0);
        ck_assert(n_streamed == bytes && memcmp(streamed, text, n) == 0);
        fm_ids_free(&ids);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(bytes_that_are_no_text_come_back_too)
{
    static file f;
    make_byte_level(&f, &byte_rows[4], true);
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n));
    static const char text[] = "the\xFF\xFE the\xE6\x97 \xC3\xA9\xC3";
    fm_ids ids = encoded(&tk, text, sizeof text - 1);
    char back[64];
    size_t n = 0;
    for (int64_t i = 0; i < ids.n; i++) {
        fm_text t = fm_tokenizer_decode(&tk, -1, ids.id[i]);
        memcpy(back + n, t.text, t.bytes);
        n += t.bytes;
    }
    ck_assert(n == sizeof text - 1 && memcmp(back, text, n) == 0);
    fm_ids_free(&ids);
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_bpe");
    TCase *t = tcase_create("tokenizer_bpe");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, ids_are_those_of_tokenizers, 0, COUNT(byte_rows) + COUNT(character_rows));
    tcase_add_loop_test(t, the_47_vectors_of_llama_cpp_pass_in_every_form, 0, 2);
    tcase_add_test(t, bytes_in_a_folder_are_bytes);
    tcase_add_test(t, vocab_json_with_merges_is_the_tokenizer_in_gguf);
    tcase_add_test(t, sentencepiece_in_gguf_is_the_tokenizer_model);
    tcase_add_loop_test(t, ids_equal_a_plain_merge, 0, 10);
    tcase_add_test(t, decoding_gives_the_text_back);
    tcase_add_test(t, bytes_that_are_no_text_come_back_too);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
