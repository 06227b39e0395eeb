// Runs the tests; the last line is "N passed, N failed", with ", N skipped" where cases skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <map>

#include "tests/skip.h"

namespace {

std::map<std::string, int> skip_reasons;  // and how many cases gave each
bool case_skipped = false;
int n_passed = 0, n_failed = 0, n_skipped = 0;

struct Counter : doctest::IReporter {
    explicit Counter(const doctest::ContextOptions&) {}
    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats&) override {}
    void test_case_start(const doctest::TestCaseData&) override { case_skipped = false; }
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
        if (!stats.testCaseSuccess)
            ++n_failed;
        else if (case_skipped)
            ++n_skipped;
        else
            ++n_passed;
    }
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData&) override {}
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("counter", 1, Counter);

}  // namespace

void skip(const std::string& reason) {
    if (!case_skipped) ++skip_reasons[reason];
    case_skipped = true;
}

int main(int argc, char** argv) {
    doctest::Context context(argc, argv);
    const int result = context.run();
    if (context.shouldExit()) return result;
    for (const auto& [reason, count] : skip_reasons) std::printf("%d skipped: %s\n", count, reason.c_str());
    std::printf("%d passed, %d failed", n_passed, n_failed);
    if (n_skipped) std::printf(", %d skipped", n_skipped);
    std::printf("\n");
    return result || n_passed == 0;
}
