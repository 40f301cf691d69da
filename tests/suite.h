/* suite.h - for tests: what every main() ends with. */
#ifndef NIBBLE_TESTS_SUITE_H
#define NIBBLE_TESTS_SUITE_H
#include <check.h>

/* Every assertion that holds tells Check's parent where it stands, by a write to a file. In a loop over a million elements that is most
 * of a test's time: one line tells it once, until another does. */
static inline void suite_mark(const char *file, int line)
{
    static int marked;
    if (line == marked)
        return;
    marked = line;
    _mark_point(file, line);
}
#define _mark_point(file, line) suite_mark(file, line)

/* Runs a suite as CK_RUN_CASE and the tags in the environment say, frees it; the exit status of the program. */
static inline int run_suite(Suite *s)
{
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_ENV);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}

/* Once for every entry of an array; _i is its index. */
#define LOOP(tc, test, table) tcase_add_loop_test(tc, test, 0, (int)(sizeof(table) / sizeof *(table)))

#endif
