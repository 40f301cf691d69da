/* test_tokenizer_client.c - ids equal those of Debian's spm_encode, where it is installed: on texts with real
 * vocabularies, and on random vocabularies with every kind of piece and setting.
 */
#include "scratch.h"
#include "suite.h"
#include "tokenizer_files.h"

/* Where Debian's sentencepiece is installed: a text, line by line, through both. */
static void compare_with_spm_encode(const char *model, const char *text)
{
    char command[2048];
    (void)snprintf(command, sizeof command,
                   "head -n 1500 '%s' | spm_encode --model='%s' --output_format=id 2>/dev/null", text, model);
    FILE *ids = popen(command, "r"), *lines = fopen(text, "r");
    ck_assert(ids && lines);
    fm_tokenizer tk = opened(model);
    char *line = NULL, *wanted = NULL;
    size_t line_capacity = 0, wanted_capacity = 0;
    int n = 0;
    for (ssize_t bytes; (bytes = getline(&wanted, &wanted_capacity, ids)) >= 0; n++) {
        wanted[strcspn(wanted, "\n")] = 0;
        ssize_t length = getline(&line, &line_capacity, lines);
        ck_assert(length >= 0);
        length -= length > 0 && line[length - 1] == '\n';
        check_ids(&tk, line, (size_t)length, wanted);
    }
    ck_assert_int_gt(n, 100);
    free(line);
    free(wanted);
    fm_tokenizer_free(&tk);
    (void)pclose(ids);
    (void)fclose(lines);
}

static bool have_spm_encode(void)
{
    bool found = system("command -v spm_encode >/dev/null 2>&1") == 0;
    if (!found)
        printf("skipped: no spm_encode (apt-get install sentencepiece)\n");
    return found;
}

START_TEST(ids_equal_spm_encode_on_a_text)
{
    static const char *const texts[] = {DATA "text/tinystories.txt", DATA "text/wikitext2_valid.txt"};
    if (!have_spm_encode() || !have(texts[_i]) || !have(TOK512 ".model") || !have(LLAMA ".model"))
        return;
    compare_with_spm_encode(TOK512 ".model", texts[_i]);
    compare_with_spm_encode(LLAMA ".model", texts[_i]);
    fm_tokenizer tk = opened(TOK512 ".bin"), written = through_folder(&tk); /* llama2.c's form as SentencePiece's */
    compare_with_spm_encode(scratch_path("written/tokenizer.model"), texts[_i]);
    fm_tokenizer_free(&tk);
    fm_tokenizer_free(&written);
}
END_TEST

/* Random pieces over a small alphabet: many equal scores, user-defined and unused pieces, spaces inside or not, with
 * and without byte pieces, normalization on and off. */
static void make_random_model(file *f, uint64_t seed)
{
    bool bytes = seed & 1, inner_space = seed & 2, extra = seed & 4, unused = seed & 8, user = seed & 16;
    f->n = 0;
    put_model_piece(f, "<unk>", 0, FM_PIECE_UNKNOWN);
    put_model_piece(f, "<s>", 0, FM_PIECE_CONTROL);
    put_model_piece(f, "</s>", 0, FM_PIECE_CONTROL);
    for (unsigned i = 0; bytes && i < 256; i++) {
        char text[8];
        (void)snprintf(text, sizeof text, "<0x%02X>", i & 255);
        put_model_piece(f, text, 0, FM_PIECE_BYTE);
    }
    char seen[128][32];
    int n = 0;
    for (uint64_t i = 0; n < 100 && i < 1000; i++) {
        static const char *const letters[] = {"\xE2\x96\x81", "a", "b", "\xC3\xA9", "c"};
        char *text = seen[n];
        int length = 1 + (int)(nb_random(seed, 1, i) % (i < 20 ? 1 : 5));
        text[0] = 0;
        for (int k = 0; k < length; k++)
            strcat(text, letters[(nb_random(seed, 2, i * 8 + (uint64_t)k) + (k > 0 && !inner_space)) %
                                     (k > 0 && !inner_space ? 4 : 5) +
                                 (k > 0 && !inner_space)]);
        bool is_new = true;
        for (int k = 0; k < n; k++)
            is_new = is_new && strcmp(seen[k], text) != 0;
        if (!is_new)
            continue;
        n++;
        uint64_t kind = nb_random(seed, 3, i) % 8;
        put_model_piece(f, text, -(float)(nb_random(seed, 4, i) % 12),
                        kind == 0 && unused ? FM_PIECE_UNUSED
                        : kind == 1 && user ? FM_PIECE_USER_DEFINED
                                            : FM_PIECE_NORMAL);
    }
    file spec = {.n = 0};
    put_varint(&spec, 3 << 3);
    put_varint(&spec, 2);
    put_varint(&spec, 35 << 3);
    put_varint(&spec, bytes);
    put_message(f, 2, spec.byte, spec.n);
    spec.n = 0;
    put_varint(&spec, 4 << 3);
    put_varint(&spec, extra);
    put_message(f, 3, spec.byte, spec.n);
}

START_TEST(ids_equal_spm_encode_on_random_vocabularies)
{
    if (!have_spm_encode())
        return;
    static file f;
    make_random_model(&f, (uint64_t)_i);
    char model[1024], text[1024];
    strcpy(model, scratch_write("random.model", f.byte, f.n));
    f.n = 0;
    for (uint64_t i = 0; i < 200; i++) {
        for (uint64_t k = 0; k < nb_random(7, 0, i) % 60; k++) {
            static const char *const letters[] = {
                "a", "b", "c", "\xC3\xA9", " ", "\xE2\x96\x81", "x", "\xF0\x9F\x99\x82"};
            const char *letter = letters[nb_random(7, 1, i * 100 + k) % 8];
            put(&f, letter, strlen(letter));
        }
        put(&f, "\n", 1);
    }
    strcpy(text, scratch_write("random.txt", f.byte, f.n));
    compare_with_spm_encode(model, text);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_client");
    TCase *t = tcase_create("tokenizer_client");
    tcase_set_timeout(t, 60);
    tcase_set_tags(t, "client");
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, ids_equal_spm_encode_on_a_text, 0, 2);
    tcase_add_loop_test(t, ids_equal_spm_encode_on_random_vocabularies, 0, 32);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
