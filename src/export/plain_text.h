// Foreign text in Markdown.
#pragma once

#include <string>
#include <string_view>

namespace moetrim::export_detail {

/// On one line, cut to `most` bytes, without characters that Markdown or a table would act on.
std::string plain(std::string_view text, std::size_t most = 200);

}  // namespace moetrim::export_detail
