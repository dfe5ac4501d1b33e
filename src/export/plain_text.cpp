// Foreign text in Markdown.

#include "export/plain_text.h"

namespace moetrim::export_detail {

std::string plain(std::string_view text, std::size_t most) {
  std::string out;
  for (const char c : text.substr(0, most)) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
    const bool active = control || std::string_view("|`<>[]*\\#").find(c) != std::string_view::npos;
    out += active ? ' ' : c;
  }
  return out;
}

}  // namespace moetrim::export_detail
