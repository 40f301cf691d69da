/* test_tokens_writer.c - whatever interrupts the writing of a token file, the file that comes out in the end has the
 * same bytes; it goes on only with the settings that it was begun with.
 */
#include "scratch.h"
#include "suite.h"
#include "token_batches.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

START_TEST(a_part_cut_anywhere_ends_in_the_same_bytes)
{
    fm_tokens_settings s = {.vocab_size = 300, .row_length = ROW};
    const char *whole = scratch_path("whole.h5"), *path = scratch_path("cut.h5");
    write_whole(whole, &s);
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, &s, false));
    must(go_on(&w, BATCHES - 1, 300));
    fm_tokens_writer_close(&w);
    nb_mapped m;
    must(nb_map(&m, part_of(path)));
    uint8_t *part = nb_alloc(m.bytes, 1);
    size_t bytes = m.bytes, header = 48 + 2 + 4, record = 8 + 2 * BATCH + 4 * ROWS + 4;
    memcpy(part, m.data, bytes);
    nb_unmap(&m);
    for (size_t n = 0; n <= bytes; n += n < header || bytes - n < 20 || (n - header) % record < 10 ? 1 : 11) {
        (void)scratch_write("cut.h5.part", part, n);
        must(fm_tokens_writer_open(&w, path, &s, false));
        ck_assert_int_eq(w.n_batches, n < header ? 0 : (n - header) / record);
        ck_assert_int_eq(w.n_tokens, w.n_batches * BATCH);
        if (n % 100 == 0 || n == bytes) {
            must(go_on(&w, BATCHES, 300));
            must(fm_tokens_writer_finish(&w));
            ck_assert(same_files(whole, path));
        }
        fm_tokens_writer_close(&w);
    }
    for (uint64_t i = 0; i < 100; i++) { /* a flipped bit costs the batches from there on */
        size_t at = header + nb_random(5, 0, i) % (bytes - header);
        part[at] ^= (uint8_t)(1u << (i & 7));
        (void)scratch_write("cut.h5.part", part, bytes);
        part[at] ^= (uint8_t)(1u << (i & 7));
        must(fm_tokens_writer_open(&w, path, &s, false));
        ck_assert_int_eq(w.n_batches, (at - header) / record);
        fm_tokens_writer_close(&w);
    }
    free(part);
}
END_TEST

START_TEST(kill_9_loses_at_most_the_last_batch)
{
    fm_tokenizer tk = byte_tokenizer();
    fm_tokens_settings s = settings_for(&tk);
    const char *whole = scratch_path("whole.h5"), *path = scratch_path("killed.h5");
    write_whole(whole, &s);
    for (uint64_t i = 0; !nb_path_exists(path) && i < 200; i++) {
        int told[2];
        ck_assert_int_eq(pipe(told), 0);
        pid_t child = fork();
        if (child == 0) {
            fm_tokens_writer w;
            status done = fm_tokens_writer_open(&w, path, &s, false);
            for (int64_t k = w.n_batches + 1; done == NB_OK && k <= BATCHES; k++) {
                done = go_on(&w, k, 300);
                (void)!write(told[1], &(char){(char)w.n_batches}, 1);
            }
            if (done == NB_OK)
                done = fm_tokens_writer_finish(&w);
            _exit(done == NB_OK ? 0 : 1);
        }
        (void)close(told[1]);
        (void)nanosleep(&(struct timespec){0, (long)(nb_random(6, 0, i) % 1500000)}, NULL);
        (void)kill(child, SIGKILL);
        int how;
        ck_assert_int_eq(waitpid(child, &how, 0), child);
        ck_assert(WIFSIGNALED(how) || WEXITSTATUS(how) == 0);
        char safe = 0;
        while (read(told[0], &safe, 1) == 1)
            continue;
        (void)close(told[0]);
        if (nb_path_exists(path))
            break;
        fm_tokens_writer w;
        must(fm_tokens_writer_open(&w, path, &s, false));
        ck_assert_int_ge(w.n_batches, safe);
        fm_tokens_writer_close(&w);
    }
    fm_tokens_writer w;
    if (nb_path_exists(part_of(path)) || !nb_path_exists(path)) { /* killed between the renaming and the removal */
        must(fm_tokens_writer_open(&w, path, &s, false));
        must(go_on(&w, BATCHES, 300));
        must(fm_tokens_writer_finish(&w));
    }
    ck_assert(same_files(whole, path));
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(a_full_disk_loses_nothing)
{
    fm_tokens_settings s = {.vocab_size = 300, .row_length = ROW};
    const char *whole = scratch_path("whole.h5"), *path = scratch_path("full.h5");
    write_whole(whole, &s);
    pid_t child = fork();
    if (child == 0) {
        (void)signal(SIGXFSZ, SIG_IGN);
        (void)setrlimit(RLIMIT_FSIZE, &(struct rlimit){2000, 2000});
        fm_tokens_writer w;
        status opened = fm_tokens_writer_open(&w, path, &s, false), grown = go_on(&w, BATCHES, 300);
        bool kept = w.n_batches == 3 && fm_tokens_writer_finish(&w) != NB_OK && !nb_path_exists(path);
        _exit(opened == NB_OK && grown == NB_IO && kept ? 0 : 1);
    }
    int how;
    ck_assert_int_eq(waitpid(child, &how, 0), child);
    ck_assert(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, &s, false));
    ck_assert_int_eq(w.n_batches, 3);
    must(go_on(&w, BATCHES, 300));
    must(fm_tokens_writer_finish(&w));
    ck_assert(same_files(whole, path));
}
END_TEST

/* ---- settings ---- */

static const struct {
    int64_t vocab_size, row_length, seed;
    const char *settings, *message;
    bool other_tokenizer;
} others[] = {
    {301, ROW, 7, NULL, "begun with vocab_size 300, now it is 301", false},
    {300, 32, 7, NULL, "begun with row_length 64, now it is 32", false},
    {300, ROW, 8, NULL, "begun with seed 7, now it is 8", false},
    {300, ROW, 7, "{\"temperature\":0.8,\"start\":\"bos\",\"tokens\":1536}", "begun with temperature 1, now it is 0.8",
     false},
    {300, ROW, 7, "{\"temperature\":1,\"start\":\"hybrid\",\"tokens\":1536}",
     "begun with start 'bos', now it is 'hybrid'", false},
    {300, ROW, 7, "{\"temperature\":1,\"start\":\"bos\"}", "begun with tokens 1536, now it is none", false},
    {300, ROW, 7, "{\"temperature\":1,\"start\":\"bos\",\"tokens\":1536,\"top_k\":5}",
     "begun with top_k none, now it is 5", false},
    {300, ROW, 7, NULL, "another tokenizer", true},
};

START_TEST(other_settings_are_refused_and_named)
{
    fm_tokenizer tk = byte_tokenizer();
    fm_tokens_settings s = settings_for(&tk), other = s;
    const char *path = scratch_path("tokens.h5");
    fm_tokens_writer w;
    must(fm_tokens_writer_open(&w, path, &s, false));
    must(go_on(&w, 2, 300));
    fm_tokens_writer_close(&w);
    other.vocab_size = others[_i].vocab_size;
    other.row_length = others[_i].row_length;
    other.seed = others[_i].seed;
    if (others[_i].settings)
        other.settings = others[_i].settings;
    if (others[_i].other_tokenizer)
        other.tokenizer = NULL;
    must_fail(fm_tokens_writer_open(&w, path, &other, false), NB_USAGE, others[_i].message);
    must(fm_tokens_writer_open(&w, path, &s, false)); /* and nothing is lost by asking */
    ck_assert_int_eq(w.n_batches, 2);
    fm_tokens_writer_close(&w);
    must(fm_tokens_writer_open(&w, path, &other, true));
    ck_assert_int_eq(w.n_batches, 0);
    fm_tokens_writer_close(&w);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(only_one_writer_at_a_time)
{
    fm_tokens_settings s = {.vocab_size = 300};
    fm_tokens_writer a, b;
    must(fm_tokens_writer_open(&a, scratch_path("tokens.h5"), &s, false));
    must_fail(fm_tokens_writer_open(&b, scratch_path("tokens.h5"), &s, false), NB_USAGE, "another process");
    must_fail(fm_tokens_writer_open(&b, scratch_path("tokens.h5"), &s, true), NB_USAGE, "another process");
    fm_tokens_writer_close(&a);
    must(fm_tokens_writer_open(&b, scratch_path("tokens.h5"), &s, false));
    fm_tokens_writer_close(&b);
}
END_TEST

START_TEST(settings_without_sense_are_refused)
{
    static const fm_tokens_settings bad[] = {{.vocab_size = 0},
                                             {.vocab_size = (int64_t)1 << 31},
                                             {.vocab_size = 5, .row_length = -1},
                                             {.vocab_size = 5, .settings = "[1]"},
                                             {.vocab_size = 5, .settings = "{\"a\":"}};
    fm_tokens_writer w;
    for (int i = 0; i < COUNT(bad); i++)
        must_fail(fm_tokens_writer_open(&w, scratch_path("tokens.h5"), &bad[i], false), NB_USAGE, "token file: ");
    fm_tokens_settings s = {.vocab_size = 5};
    must_fail(fm_tokens_writer_open(&w, scratch_path("no/such/folder.h5"), &s, false), NB_IO, "folder.h5.part");
    (void)scratch_write("foreign.h5.part", "something else altogether", 25);
    must_fail(fm_tokens_writer_open(&w, scratch_path("foreign.h5"), &s, false), NB_FORMAT, "restart discards it");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokens_writer");
    TCase *t = tcase_create("tokens_writer");
    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_test(t, a_part_cut_anywhere_ends_in_the_same_bytes);
    tcase_add_test(t, kill_9_loses_at_most_the_last_batch);
    tcase_add_test(t, a_full_disk_loses_nothing);
    tcase_add_loop_test(t, other_settings_are_refused_and_named, 0, COUNT(others));
    tcase_add_test(t, only_one_writer_at_a_time);
    tcase_add_test(t, settings_without_sense_are_refused);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
