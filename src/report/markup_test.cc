#include "src/report/markup.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Markup, EscapesXml) {
  EXPECT_EQ(EscapeXml("<script>alert('x') & \"y\"</script>"),
            "&lt;script&gt;alert(&#39;x&#39;) &amp; &quot;y&quot;&lt;/script&gt;");
}

TEST(Markup, PrintableKeepsTextAndDropsWhatXmlForbids) {
  EXPECT_EQ(Printable("naïve 模型 🦙"), "naïve 模型 🦙");
  EXPECT_EQ(Printable("a\nb\x1b[31m\x7f"), "a b [31m ");
  EXPECT_EQ(Printable("\xff\xc0\x80z"), "\uFFFD\uFFFD\uFFFDz");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(Printable("\xe2\x80"), "\uFFFD\uFFFD");            // cut short
  EXPECT_EQ(Printable("a\u202Eb\uFFFE"), "a\uFFFDb\uFFFD");
}

TEST(Markup, EscapesMarkdown) {
  EXPECT_EQ(EscapeMarkdown("a|b *c* _d_ `e` <f> [g](h)"),
            "a\\|b \\*c\\* \\_d\\_ \\`e\\` &lt;f> \\[g\\](h)");
}

TEST(Markup, WidthCountsCharacters) { EXPECT_EQ(DisplayWidth("−1.2 ± 模"), 8); }

}  // namespace
}  // namespace nibble
