/* test_tokenizer.c - ids equal SentencePiece's and a plain O(n^2) merge; text survives the way there and back.
 * Reference ids: spm_encode 0.1.97, and llama.cpp's ggml-vocab-llama-spm.gguf.{inp,out}.
 */
#include "scratch.h"
#include "suite.h"
#include "tokenizer_files.h"
#include <math.h>

/* { text, ids of tok512.model, ids of LLaMA-2's tokenizer.model } */
static const char *const vectors[][3] = {
    {"Once upon a time, there was a little girl named Lily.",
     "403 407 261 378 432 383 286 261 376 298 315 421 395 317 426",
     "9038 2501 263 931 29892 727 471 263 2217 7826 4257 365 2354 29889"},
    {"\"Hello,\" he said.  Two  spaces", "313 440 411 306 414 432 436 281 336 426 274 424 414 262 427 412 331 419",
     "376 10994 1699 540 1497 29889 29871 7803 29871 8162"},
    {" leading and trailing  ", "278 411 380 299 269 259 420 412 290 299", "29871 8236 322 25053 259"},
    {"Zo\xC3\xAB ate 123 na\xC3\xAFve \xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xF0\x9F\x99\x82 \xE2\x96\x81x",
     "410 469 414 198 174 261 413 411 410 475 479 472 297 412 198 178 360 410 233 154 168 233 159 175 235 173 161 410 "
     "243 162 156 133 410 410 444",
     "17421 30083 263 371 29871 29896 29906 29941 1055 30085 345 29871 30325 30346 30968 29871 243 162 156 133 29871 "
     "921"},
    {"\ttab", "410 12 413 412 430", "29871 12 3891"},
    {"~]~~]aaaaaaaaaaaaaaaa", "410 510 509 510 510 509 412 412 412 412 412 412 412 412 412 412 412 412 412 412 412 412",
     "3695 29962 7377 29962 27137 27137 27137 27137"},
    {"", "", ""},
};

START_TEST(ids_are_those_of_sentencepiece)
{
    if (!have(TOK512 ".model") || !have(LLAMA ".model"))
        return;
    fm_tokenizer a = opened(TOK512 ".model"), b = opened(LLAMA ".model");
    for (int i = 0; i < COUNT(vectors); i++) {
        check_ids(&a, vectors[i][0], strlen(vectors[i][0]), vectors[i][1]);
        check_ids(&b, vectors[i][0], strlen(vectors[i][0]), vectors[i][2]);
    }
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
}
END_TEST

START_TEST(the_47_vectors_of_llama_cpp_pass)
{
    if (!have(LLAMA ".model") || !have(VOCAB "llama-spm.gguf.inp"))
        return;
    fm_tokenizer tk = opened(LLAMA ".model");
    check_vectors(&tk, VOCAB "llama-spm.gguf");
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(llama2c_form_and_sentencepiece_form_are_one_vocabulary)
{
    const char *bin = _i ? LLAMA ".bin" : TOK512 ".bin", *model = _i ? LLAMA ".model" : TOK512 ".model";
    if (!have(bin) || !have(model))
        return;
    fm_tokenizer a = opened(bin), b = opened(model);
    ck_assert_int_eq(a.vocab_size, _i ? 32000 : 512);
    ck_assert_int_eq(a.vocab_size, b.vocab_size);
    ck_assert_uint_eq(a.hash, b.hash);
    for (int32_t i = 0; i < a.vocab_size; i++) {
        fm_piece p = fm_tokenizer_piece(&a, i), q = fm_tokenizer_piece(&b, i);
        ck_assert(p.text.bytes == q.text.bytes && memcmp(p.text.text, q.text.text, p.text.bytes) == 0);
        ck_assert(p.score == q.score && p.type == q.type);
        ck_assert_int_eq(fm_tokenizer_find(&a, p.text.text, p.text.bytes), i);
    }
    ck_assert(a.bos == 1 && a.eos == 2 && a.unknown == 0 && a.byte_fallback && a.add_space_prefix);
    ck_assert_mem_eq(fm_tokenizer_piece(&a, 1).text.text, "<s>", 3);
    fm_tokenizer_free(&a);
    fm_tokenizer_free(&b);
    ck_assert_int_eq(fm_tokenizer_open(&a, bin, 1000), NB_FORMAT);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "the model 1000"));
}
END_TEST

enum { MOST_PARTS = 256, PART_BYTES = 64 };

/* run.c: merge the best adjacent pair, again and again, over all of the text (of at most 60 characters). */
static fm_ids merged_plainly(const fm_tokenizer *tk, const char *text)
{
    char part[MOST_PARTS][PART_BYTES];
    int n = 0;
    if (text[0])
        strcpy(part[n++], "\xE2\x96\x81");
    for (const char *c = text; *c; n++) {
        int length = (*c & 0x80) == 0 ? 1 : 2;
        (void)snprintf(part[n], PART_BYTES, "%.*s", *c == ' ' ? 3 : length, *c == ' ' ? "\xE2\x96\x81" : c);
        c += length;
    }
    for (;;) {
        float best = -INFINITY;
        int at = -1;
        char joined[2 * PART_BYTES], merged[PART_BYTES] = "";
        for (int i = 0; i + 1 < n; i++) {
            int bytes = snprintf(joined, sizeof joined, "%s%s", part[i], part[i + 1]);
            int32_t id = fm_tokenizer_find(tk, joined, (size_t)bytes);
            if (id >= 0 && fm_tokenizer_piece(tk, id).score > best) {
                best = fm_tokenizer_piece(tk, id).score;
                at = i;
                memcpy(merged, joined, (size_t)bytes + 1);
            }
        }
        if (at < 0)
            break;
        memcpy(part[at], merged, sizeof merged);
        memmove(part[at + 1], part[at + 2], (size_t)(--n - at - 1) * PART_BYTES);
    }
    fm_ids ids = {0};
    must(fm_ids_reserve(&ids, MOST_PARTS * 4));
    for (int i = 0; i < n; i++) {
        int32_t id = fm_tokenizer_find(tk, part[i], strlen(part[i]));
        for (const char *c = part[i]; id < 0 && *c; c++)
            ids.id[ids.n++] = (uint8_t)*c + 3;
        if (id >= 0)
            ids.id[ids.n++] = id;
    }
    return ids;
}

START_TEST(ids_equal_a_plain_merge_on_random_vocabularies)
{
    static file f;
    uint64_t seed = (uint64_t)_i;
    begin_bin(&f);
    char seen[64][16];
    int n = 0;
    for (uint64_t i = 0; n < 60 && i < 2000; i++) {
        char text[16] = "";
        for (uint64_t k = 0; k < 1 + nb_random(seed, 0, i) % 4; k++)
            strncat(text, &" abcd"[nb_random(seed, 1, i * 8 + k) % 5], 1);
        bool is_new = true;
        for (int k = 0; k < n; k++)
            is_new = is_new && strcmp(seen[k], text) != 0;
        if (!is_new)
            continue;
        strcpy(seen[n++], text);
        put_bin_piece(&f, text, -(float)(nb_random(seed, 2, i) % 20));
    }
    fm_tokenizer tk = opened(scratch_write("random.bin", f.byte, f.n));
    for (uint64_t i = 0; i < 100; i++) {
        char text[128] = "";
        for (uint64_t k = 0; k < nb_random(seed, 3, i) % 60; k++)
            strcat(text, ((const char *[]){" ", "a", "b", "c", "d", "\xC3\xA9"})[nb_random(seed, 4, i * 64 + k) % 6]);
        fm_ids found = encoded(&tk, text, strlen(text)), wanted = merged_plainly(&tk, text);
        ck_assert_int_eq(found.n, wanted.n);
        ck_assert_msg(found.n == 0 || memcmp(found.id, wanted.id, (size_t)found.n * 4) == 0, "'%s'", text);
        fm_ids_free(&found);
        fm_ids_free(&wanted);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

/* ---- there and back ---- */

/* Random bytes: letters, spaces, UTF-8, and bytes that are none. */
static size_t random_text(char *text, size_t most, uint64_t seed)
{
    static const char *const parts[] = {
        "a",    "the",      " ",    "  ",           "\n",       "\xC3\xA9", "\xE6\x97\xA5", "\xF0\x9F\x99\x82",
        "\xFF", "\xE6\x97", "\x80", "\xED\xA0\x80", "\xC0\xAF", "<s>",      "<0x41>",       "\x01"};
    size_t n = 0;
    for (uint64_t i = 0; n + 8 < most; i++) {
        const char *p = parts[nb_random(seed, 0, i) % COUNT(parts)];
        memcpy(text + n, p, strlen(p));
        n += strlen(p);
    }
    return n;
}

static const char *const round_trip[] = {"bytes", TOK512 ".bin", LLAMA ".model"};

START_TEST(decoding_gives_the_text_back)
{
    if (_i > 0 && !have(round_trip[_i]))
        return;
    fm_tokenizer tk = opened(round_trip[_i]);
    for (uint64_t seed = 0; seed < 200; seed++) {
        char text[200], back[400];
        size_t bytes = random_text(text, 1 + seed, seed), n = 0;
        fm_ids ids = {0};
        must(fm_tokenizer_encode(&tk, &ids, text, bytes, FM_ADD_BOS | FM_ADD_EOS));
        ck_assert(ids.n >= 2 && ids.id[0] == tk.bos && ids.id[ids.n - 1] == tk.eos);
        for (int64_t i = 0; i < ids.n; i++) {
            fm_text t = fm_tokenizer_decode(&tk, i ? ids.id[i - 1] : -1, ids.id[i]);
            memcpy(back + n, t.text, t.bytes);
            n += t.bytes;
        }
        ck_assert_uint_eq(n, bytes);
        ck_assert_mem_eq(back, text, n);
        fm_ids_free(&ids);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(only_the_first_space_after_bos_is_dropped)
{
    if (!have(TOK512 ".bin"))
        return;
    fm_tokenizer tk = opened(TOK512 ".bin");
    int32_t id = fm_tokenizer_find(&tk, "\xE2\x96\x81the", 6);
    ck_assert_int_gt(id, 0);
    static const struct {
        int32_t previous;
        const char *text;
    } rows[] = {{-1, "the"}, {1, "the"}, {2, " the"}, {300, " the"}};
    for (int i = 0; i < COUNT(rows); i++) {
        fm_text t = fm_tokenizer_decode(&tk, rows[i].previous, id);
        ck_assert(t.bytes == strlen(rows[i].text) && memcmp(t.text, rows[i].text, t.bytes) == 0);
    }
    ck_assert_uint_eq(fm_tokenizer_decode(&tk, 5, 1).bytes, 0); /* BOS has no text */
    static const int32_t outside[] = {-1, 512, INT32_MAX, INT32_MIN};
    for (int i = 0; i < COUNT(outside); i++) {
        ck_assert_uint_eq(fm_tokenizer_decode(&tk, outside[i], outside[i]).bytes, 0);
        ck_assert_ptr_null(fm_tokenizer_piece(&tk, outside[i]).text.text);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

/* Whether bytes are valid UTF-8: Python's strict decoder, in C. */
static bool is_utf8(const char *text, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    for (size_t i = 0; i < bytes;) {
        size_t n = p[i] < 0x80 ? 1 : p[i] >> 5 == 6 ? 2 : p[i] >> 4 == 14 ? 3 : p[i] >> 3 == 30 ? 4 : 0;
        if (n == 0 || i + n > bytes)
            return false;
        uint32_t c = n == 1 ? p[i] : p[i] & (0x7Fu >> n);
        for (size_t k = 1; k < n; k++) {
            if (p[i + k] >> 6 != 2)
                return false;
            c = c << 6 | (p[i + k] & 63u);
        }
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (c < least[n] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000))
            return false;
        i += n;
    }
    return true;
}

START_TEST(a_stream_never_gives_half_a_character)
{
    fm_tokenizer tk;
    must(fm_tokenizer_byte(&tk));
    static fm_stream s;
    for (uint64_t seed = 0; seed < 300; seed++) {
        char text[100], out[400];
        size_t bytes = random_text(text, sizeof text, seed), n = 0;
        for (size_t i = 0; i <= bytes; i++) {
            fm_text t = i < bytes ? fm_stream_put(&s, &tk, (uint8_t)text[i]) : fm_stream_flush(&s);
            ck_assert(is_utf8(t.text, t.bytes));
            ck_assert_uint_eq(t.text[t.bytes], 0);
            memcpy(out + n, t.text, t.bytes);
            n += t.bytes;
        }
        if (is_utf8(text, bytes)) {
            ck_assert_uint_eq(n, bytes);
            ck_assert_mem_eq(out, text, n);
        }
    }
    fm_tokenizer_free(&tk);
}
END_TEST

/* { bytes, what comes out when byte after byte goes in (| between), | and what the end gives } */
static const char *const streams[][2] = {
    {"ab", "a|b|"},
    {"\xC3\xA9x", "|\xC3\xA9|x|"},
    {"\xF0\x9F\x99\x82", "|||\xF0\x9F\x99\x82|"},
    {"\xF0\x9F", "||\xEF\xBF\xBD\xEF\xBF\xBD"},
    {"\xE6z", "|\xEF\xBF\xBDz|"},
    {"\xFFz", "\xEF\xBF\xBD|z|"},
    {"\xED\xA0", "|\xEF\xBF\xBD\xEF\xBF\xBD|"},
};

START_TEST(a_stream_holds_back_what_is_unfinished)
{
    fm_tokenizer tk;
    must(fm_tokenizer_byte(&tk));
    static fm_stream s;
    char out[100] = "";
    for (const char *c = streams[_i][0]; *c; c++) {
        strcat(out, fm_stream_put(&s, &tk, (uint8_t)*c).text);
        strcat(out, "|");
    }
    strcat(out, fm_stream_flush(&s).text);
    ck_assert_str_eq(out, streams[_i][1]);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(the_byte_tokenizer_is_the_bytes)
{
    fm_tokenizer tk = opened("bytes");
    ck_assert(tk.kind == FM_TOKENIZER_BYTES && tk.vocab_size == 258 && tk.bos == 256 && tk.eos == 257);
    char all[256];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    fm_ids ids = encoded(&tk, all, 256);
    ck_assert_int_eq(ids.n, 256);
    for (int i = 0; i < 256; i++)
        ck_assert_int_eq(ids.id[i], i);
    ck_assert_mem_eq(fm_tokenizer_piece(&tk, 65).text.text, "<0x41>", 6);
    ck_assert_int_eq(fm_tokenizer_piece(&tk, 65).type, FM_PIECE_BYTE);
    fm_ids_free(&ids);
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer");
    TCase *t = tcase_create("tokenizer");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_test(t, ids_are_those_of_sentencepiece);
    tcase_add_test(t, the_47_vectors_of_llama_cpp_pass);
    tcase_add_loop_test(t, llama2c_form_and_sentencepiece_form_are_one_vocabulary, 0, 2);
    tcase_add_loop_test(t, ids_equal_a_plain_merge_on_random_vocabularies, 0, 10);
    tcase_add_loop_test(t, decoding_gives_the_text_back, 0, COUNT(round_trip));
    tcase_add_test(t, only_the_first_space_after_bos_is_dropped);
    tcase_add_test(t, a_stream_never_gives_half_a_character);
    tcase_add_loop_test(t, a_stream_holds_back_what_is_unfinished, 0, COUNT(streams));
    tcase_add_test(t, the_byte_tokenizer_is_the_bytes);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
