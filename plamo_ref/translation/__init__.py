"""Long documents from one language into another, with PLaMo 2 Translate.

from plamo_ref import LLM
from plamo_ref.translation import Translator

llm = LLM("pfnet/plamo-2-translate")
print(Translator(llm, target_lang="Japanese").translate(document).text)
"""

from plamo_ref.translation.translator import TranslatedPiece, Translation, Translator

__all__ = ["TranslatedPiece", "Translation", "Translator"]
